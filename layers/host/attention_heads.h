// The heads of causal self-attention, by products of our own for AVX-512: a head's are too small for oneDNN
// to reach its speed, and it has none that leaves out what the mask hides.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/stream.h"
#include "layers/provider.h"
#include "layers/tensor.h"

namespace pipeoptim::host {

struct HeadExtents {
  std::int64_t records = 0, length = 0, heads = 0;
  std::int64_t width = 0;  // features of a head
};

// Of each head o = softmax(q k^T / sqrt(width)) v, where position t sees the positions up to t, and its
// gradients. What is not finite in a position may also show in up to 7 before it. In bf16 q, k, v,
// probabilities and the gradients of outputs and scores are rounded as factors; sums and the softmax are
// fp32. Each thread goes through one head after the other: the bits do not depend on the number of threads.
class AttentionHeads {
 public:
  // Whether it is made for such products, and the processor has the instructions.
  static bool handles(std::int64_t width, MatrixPrecision precision);

  AttentionHeads(int threads, const HeadExtents& extents, MatrixPrecision precision);

  // Of all values that it reads and writes.
  ElementType type() const { return type_; }
  std::size_t workspace_bytes() const { return part_bytes_ * static_cast<std::size_t>(threads_); }

  // Of all heads: {N, T, 3 features}, and {N, heads, 2, T}, which forward makes and backward reads.
  struct Operands {
    Factor qkv;
    float* normalizers;
  };

  // In the order of the stream, which has the planned number of threads. Outputs are {N, T, features}, the
  // gradient of qkv as that. The workspace is aligned to kAlignment. Outlives the work.
  void forward(Stream& stream, const Operands& operands, const Destination& output,
               std::byte* workspace) const;
  void backward(Stream& stream, const Operands& operands, const Factor& output_gradient,
                const Destination& qkv_gradient, std::byte* workspace) const;

 private:
  int threads_;
  HeadExtents extents_;
  ElementType type_;
  std::size_t part_bytes_ = 0;
};

}  // namespace pipeoptim::host
