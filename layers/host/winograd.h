// 3x3 convolutions in fp32 with fewer products: Winograd's F(2x2, 3x3), Lavin and Gray, arXiv 1509.09308.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "layers/host/shares.h"
#include "layers/host/winograd_points.h"
#include "layers/provider.h"

namespace pipeoptim::host {

// The output is cut into tiles of 2x2 pixels, which see 4x4 of the input. Both are transformed to 16 points,
// at each of which a tile's channels are multiplied by a matrix: 16 products for 4 output pixels, where the
// convolution itself has 36. With input d, weights g and output y of a tile,
//   y = A' [(G g G') (B' d B)] A,   dg = G' [(A dy A') (B' d B)] G,
// the products between the brackets summed over channels, or over tiles. The input gradient is the forward
// of the flipped weights. A value that is not finite spreads over its tile.
//
// For a weight gradient a thread sums all tiles for its output channels. Of narrow layers, whose sums
// are small, it sums its tiles for all channels, and the threads' sums are added in order, so that the bits
// depend on the number of threads, as oneDNN's.
class WinogradConvolution {
 public:
  // Whether it is made for the convolution, with enough tiles for each thread and for transforming the
  // weights, and the processor has AVX2.
  static bool handles(int threads, const ConvolutionSpec& spec);
  // Whether that holds for its weight gradient, too. With few channels a direct one is faster, as this
  // transforms two images; of a wide layer each thread must have work.
  static bool handles_weights(int threads, const ConvolutionSpec& spec);

  WinogradConvolution(int threads, const ConvolutionSpec& spec,
                      const winograd::Code* code = winograd::best_code());

  std::size_t workspace_bytes() const { return workspace_.bytes(); }

  // In the order of the stream, which has the planned number of threads. The workspace is aligned to
  // kAlignment. All outlive the work. The bias may be null.
  void forward(Stream& stream, const float* input, const float* weights, const float* bias, float* output,
               std::byte* workspace) const;
  void backward_data(Stream& stream, const float* weights, const float* output_gradient,
                     float* input_gradient, std::byte* workspace) const;
  void backward_weights(Stream& stream, const float* input, const float* output_gradient,
                        float* weight_gradient, GradientMode mode, std::byte* workspace) const;

 private:
  enum class Division { kTiles, kChannels };
  // What a thread sums, and where: its sums are [point][out][in], of all channels.
  struct Part {
    Range tiles, channels;
    float* sums;
  };

  void transform_weights(const float* weights, decltype(winograd::Code::transform_forward) transform,
                         std::byte* workspace) const;
  void convolve(const winograd::Images& from, const float* values, const winograd::Images& to,
                const float* bias, float* results, std::byte* workspace) const;
  Part part(std::byte* workspace, int thread) const;
  void sum(const Part& part, const float* input, const float* output_gradient, float* scratch) const;
  void add_threads(std::byte* workspace, float* weight_gradient, GradientMode mode) const;
  std::int64_t products() const { return in_.channels * out_.channels; }
  // Transformed weights, or sums.
  float* all_points(std::byte* workspace) const;
  float* scratch(std::byte* workspace, int thread) const;

  int threads_;
  const winograd::Code* code_;
  winograd::Images in_, out_;
  std::int64_t tiles_;  // of all records
  Division division_;
  ArenaPlan workspace_;
  std::size_t all_points_ = 0, scratch_ = 0;  // offsets
  std::int64_t scratch_floats_ = 0;           // of a thread
};

}  // namespace pipeoptim::host
