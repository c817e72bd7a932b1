// Linear maps with factors in bf16 by products of our own, for AVX-512 BF16: the tiles of factors.h over
// panels that are packed for the caches. oneDNN 2.6 takes the same time where the cores share a cache, and up
// to a sixth more where what one has written comes to the other from afar.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/stream.h"
#include "layers/provider.h"
#include "layers/tensor.h"

namespace pipeoptim::host {

// y = activation(x W^T + b) and its gradients, as LinearPlan's; W is [out, in]. Each thread has its share of
// the rows, in all three directions the same one, so that what it reads is what it wrote as a rule, and packs
// for itself what it needs of the weights. Sums are fp32, each in the order of its terms, but weight
// gradients of many rows: those are summed in groups of rows, as many as the threads allow, which are then
// added in order. Their bits depend on the number of threads, as oneDNN's.
class TiledLinear {
 public:
  struct Range {
    std::int64_t begin, end;
    std::int64_t size() const { return end - begin; }
  };

  // Whether the processor has the instructions, and the extents fill the tiles: rows in eights, features in
  // sixteens, and so many rows that packing the weights is cheap beside the product.
  static bool handles(const LinearSpec& spec);

  TiledLinear(int threads, const LinearSpec& spec);

  std::size_t workspace_bytes() const;

  // In the order of the stream, which has the planned number of threads. The workspace is aligned to
  // kAlignment. Outlives the work.
  void forward(Stream& stream, const Bf16* input, const Bf16* weights, const float* bias,
               const Destination& output, std::byte* workspace) const;
  void backward_input(Stream& stream, const Bf16* output_gradient, const Bf16* weights,
                      const Destination& input_gradient, std::byte* workspace) const;
  void backward_weights(Stream& stream, const Bf16* output_gradient, const Bf16* input,
                        float* weight_gradient, GradientMode mode, std::byte* workspace) const;

 private:
  // Of a weight gradient: the rows that a thread sums, for some of the outputs.
  struct Part {
    const Bf16 *output_gradient, *input;
    Range rows, outputs;
  };
  std::size_t sums_bytes() const;
  std::size_t packed_gradient_bytes() const;
  void sum_products(const Part& part, float* to, bool adds, std::byte* workspace) const;
  void add_groups(const float* sums, float* weight_gradient) const;

  int threads_;
  std::int64_t rows_, in_, out_;
  Activation activation_;
  int groups_ = threads_;  // of rows
};

}  // namespace pipeoptim::host
