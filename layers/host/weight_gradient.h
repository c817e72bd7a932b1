// The weight gradient of a 3x3 convolution with few channels, factors in bf16, by the AVX-512 instruction for
// products of bf16 pairs. oneDNN 2.6 takes 1.1 to 1.3 times as long there, with strides twice as long.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/stream.h"
#include "layers/provider.h"

namespace pipeoptim::host {

// dw[o, kh, kw, i] = sum over records and output pixels (r, c) of
// dy[r, c, o] x[r stride + kh - padding, c stride + kw - padding, i]. Sums are fp32, each thread's over its
// share of the records, then of the threads in order: the bits depend on the number of threads, as oneDNN's.
// With an odd number of output columns an input that is not finite may show in the tap beside its own, too.
class NarrowWeightGradient {
 public:
  // Whether it is made for the convolution, with a record for each thread at least and records that fit the
  // second-level cache, and the processor has the instruction.
  static bool handles(int threads, const ConvolutionSpec& spec);

  NarrowWeightGradient(int threads, const ConvolutionSpec& spec);

  std::size_t workspace_bytes() const { return workspace_bytes_; }

  // In the order of the stream, which has the planned number of threads. The workspace is aligned to
  // kAlignment. Outlives the work.
  void run(Stream& stream, const Bf16* input, const Bf16* output_gradient, float* weight_gradient,
           GradientMode mode, std::byte* workspace) const;

 private:
  // A dword of a packed array holds two bf16 values of one channel, of two neighbouring output columns.
  struct Extents {
    explicit Extents(const ConvolutionSpec& spec);
    std::int64_t records = 0, rows = 0, columns = 0, channels = 0;  // of the input
    std::int64_t out_rows = 0, out_columns = 0, out_channels = 0;
    std::int64_t stride = 1, padding = 0;
    std::int64_t pairs = 0;                // of output columns
    std::int64_t step = 0;                 // vectors of packed input from one pair to the next
    std::int64_t row = 0;                  // vectors of packed input of a row and 16 channels
    std::int64_t input_blocks = 0;         // of 16 channels
    std::int64_t output_blocks = 0;        // of 8 channels
    std::int64_t input = 0, gradient = 0;  // dwords of a packed record
    std::int64_t group = 1;                // records that are packed together
    std::int64_t sums = 0;                 // floats of one thread
  };
  // A thread's part of the workspace.
  struct Part {
    float* sums;
    std::uint32_t *input, *gradient;
  };

  Part part(std::byte* workspace, int thread) const;
  void sum_records(const Bf16* input, const Bf16* output_gradient, const Part& part, std::int64_t begin,
                   std::int64_t end) const;
  void store(std::byte* workspace, std::int64_t channel, float* weight_gradient, GradientMode mode) const;

  static void pack_input(const Extents& e, const Bf16* record, std::uint32_t* packed);
  static void pack_gradient(const Extents& e, const Bf16* record, std::uint32_t* packed);
  static void multiply(const Extents& e, const Part& part, std::int64_t records, std::int64_t output_block,
                       std::int64_t input_block, std::int64_t kernel_row);

  int threads_;
  Extents extents_;
  std::size_t part_bytes_ = 0, workspace_bytes_ = 0;
};

}  // namespace pipeoptim::host
