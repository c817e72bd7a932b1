// The heads of causal self-attention with factors in bf16, by the AVX-512 instruction for products of bf16
// pairs. A head's products are too small for oneDNN to reach its speed, and it has none that leaves out what
// the mask hides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/stream.h"
#include "layers/provider.h"

namespace pipeoptim::host {

struct HeadExtents {
  std::int64_t records = 0, length = 0, heads = 0;
  std::int64_t width = 0;  // features of a head
};

// Of each head o = softmax(q k^T / sqrt(width)) v, where position t sees the positions up to t, and its
// gradients. What is not finite in a position may also show in up to 7 before it. q, k, v, probabilities and
// the gradients of outputs and scores are rounded to bf16 as factors; sums and the softmax are fp32. Each
// thread goes through one head after the other: the bits do not depend on the number of threads.
class AttentionHeads {
 public:
  // Whether it is made for such products, and the processor has the instruction.
  static bool handles(std::int64_t width, MatrixPrecision precision);

  AttentionHeads(int threads, const HeadExtents& extents);

  // Of all heads: {N, T, 3 features}, and {N, heads, 2, T}, which forward makes and backward reads.
  struct Operands {
    const Bf16* qkv;
    float* normalizers;
  };

  std::size_t workspace_bytes() const { return part_bytes_ * static_cast<std::size_t>(threads_); }

  // In the order of the stream, which has the planned number of threads. Outputs are {N, T, features}, the
  // gradient of qkv as that. The workspace is aligned to kAlignment. Outlives the work.
  void forward(Stream& stream, const Operands& operands, Bf16* output, std::byte* workspace) const;
  void backward(Stream& stream, const Operands& operands, const Bf16* output_gradient, Bf16* qkv_gradient,
                std::byte* workspace) const;

 private:
  int threads_;
  HeadExtents extents_;
  std::size_t part_bytes_ = 0;
};

}  // namespace pipeoptim::host
