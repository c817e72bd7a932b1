// Linear maps with factors in bf16 by products of our own, for AVX-512 BF16, over panels that are packed for
// the caches. oneDNN 2.6 takes the same time where the cores share a cache, and up to a sixth more where what
// one has written comes to the other from afar.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "layers/host/shares.h"
#include "layers/provider.h"
#include "layers/tensor.h"

namespace pipeoptim::host {

// Each thread has its share of the rows, the same one forward and backward, so that what it reads is what it
// wrote as a rule, and packs for itself what it needs of the weights. Who is done with the columns that it
// packed last takes of the rows that others have left. Factors that are given in fp32 are rounded while they
// are packed. Sums are fp32.
//
// For weight gradients threads are in as many groups as divide them and have enough rows each; a group's
// threads share out its outputs. Each group sums its rows for one piece of the gradient after the other and
// adds them to what other groups have made of it; no two are at the same piece. The bits depend on the number
// of threads, as oneDNN's.
class TiledLinear final : public LinearPlan {
 public:
  // Whether the processor has the instructions, and the extents fill the tiles: rows in eights, features in
  // sixteens, so many rows that packing the weights is cheap beside the product, features that leave it in
  // the caches, and work for each thread.
  static bool handles(int threads, const LinearSpec& spec);

  TiledLinear(int threads, const LinearSpec& spec);

  std::size_t workspace_bytes() const override { return workspace_.bytes(); }
  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override;
  void backward_input(Stream& stream, const LinearBackwardInput& operands,
                      std::byte* workspace) const override;
  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override;

 private:
  // Of the gradients: the rows that a thread sums in a turn, for some of the outputs and inputs.
  struct Part {
    Range rows, outputs, inputs;
    bool first;            // turn
    bool adds;             // to what is there of the weight gradient
    float* bias_gradient;  // of all outputs; null where it is not to be summed
    bool adds_bias;
  };
  std::size_t sums_bytes() const;
  std::size_t product_bytes() const;
  std::size_t factor_bytes(std::int64_t columns) const;
  Part part_of(const LinearBackwardWeights& operands, int thread, int turn, float* sums) const;
  void sum_products(const LinearBackwardWeights& operands, const Part& part, std::byte* workspace) const;

  int threads_;
  LinearSpec spec_;
  int groups_;  // of rows, and pieces of the gradient
  ArenaPlan workspace_;
};

}  // namespace pipeoptim::host
