// The weight gradient of a 3x3 convolution with factors in bf16, by the AVX-512 instruction for products of
// bf16 pairs. oneDNN 2.6 takes 1.1 to 2 times as long: most for images of 4x4 pixels and with strides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/stream.h"
#include "layers/host/shares.h"
#include "layers/provider.h"

namespace pipeoptim::host {

// dw[o, kh, kw, i] = sum over records and output pixels (r, c) of
// dy[r, c, o] x[r stride + kh - padding, c stride + kw - padding, i]. Sums are fp32. The two values of a pair
// are those of two records at one pixel: each pixel can then leave out the taps that lie outside of the
// image.
//
// A thread sums all records for its output channels. A narrow layer has too few of them: there it sums its
// records for all channels, and the threads' sums are added in order, so that the bits depend on the number
// of threads, as oneDNN's.
class PairedWeightGradient {
 public:
  // Whether it is made for the convolution, with work for each thread and images that fit the second-level
  // cache, and the processor has the instruction.
  static bool handles(int threads, const ConvolutionSpec& spec);

  PairedWeightGradient(int threads, const ConvolutionSpec& spec);

  std::size_t workspace_bytes() const { return workspace_bytes_; }

  // In the order of the stream, which has the planned number of threads. The workspace is aligned to
  // kAlignment. Outlives the work.
  void run(Stream& stream, const Bf16* input, const Bf16* output_gradient, float* weight_gradient,
           GradientMode mode, std::byte* workspace) const;

 private:
  enum class Division { kRecords, kChannels };
  // Of one of the two factors. Packed, it is [block of 16 channels][pixel][pair][channel], a dword each.
  struct Image {
    std::int64_t rows = 0, columns = 0, channels = 0;
    std::int64_t pixels() const { return rows * columns; }
    std::int64_t blocks() const;
    std::int64_t record() const { return pixels() * channels; }
  };
  struct Extents {
    explicit Extents(const ConvolutionSpec& spec);
    std::int64_t records = 0, stride = 1, padding = 0;
    Image input, output;
    std::int64_t weights = 0;
  };
  // What a thread does, and where: its sums are [out, kh, kw, in], of all weights.
  struct Part {
    Range records, output_blocks;
    float* sums;
    std::uint32_t *input, *gradient;
  };
  struct Packed {
    const std::uint32_t *input, *gradient;  // one block of each
    std::int64_t pairs;
  };

  static Division division(const Extents& e);
  static bool divides(int threads, const Extents& e);
  Part part(float* sums, std::byte* workspace, int thread) const;
  void sum(const Part& part, const Bf16* input, const Bf16* output_gradient) const;
  void multiply_blocks(const Part& part, std::int64_t pairs) const;

  static void pack(const Image& image, const Range& blocks, const Bf16* first, std::int64_t records,
                   std::uint32_t* packed);
  static void multiply(const Extents& e, const Packed& packed, float* sums, std::int64_t kernel_row,
                       std::int64_t output);

  int threads_;
  Extents extents_;
  Division division_;
  std::int64_t pairs_ = 0;  // that are packed together
  std::size_t sums_bytes_ = 0, input_bytes_ = 0, part_bytes_ = 0, workspace_bytes_ = 0;
};

}  // namespace pipeoptim::host
