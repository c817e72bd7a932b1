// Factors of products in bf16: fp32 values are rounded into a workspace, to the nearest value (kernels/
// runtime/bf16.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "layers/layer.h"
#include "layers/provider.h"

namespace pipeoptim {

void round_to_bf16(Stream& stream, std::int64_t count, const float* values, Bf16* rounded);
void widen_bf16(Stream& stream, std::int64_t count, const Bf16* values, float* widened);

// The values of a factor or a result that is fp32. Throws std::invalid_argument where it is not.
const float* fp32_values(const Factor& factor);
float* fp32_values(const Destination& result);

// How many values each factor of a map with weights has, its gradients likewise.
struct FactorCounts {
  std::int64_t input = 0;
  std::int64_t weights = 0;
  std::int64_t output = 0;
};

// The factors of a plan in the type of its precision. A plan of kBf16 has places in its workspace for those
// that may be given in fp32: each call enqueues the rounding of one where there is no copy yet. In the other
// precisions they are as given, and std::invalid_argument is thrown where that is bf16.
class PlanFactors {
 public:
  PlanFactors(MatrixPrecision precision, const FactorCounts& counts, const ElementTypes& types,
              ArenaPlan& workspace);

  const void* input(Stream& stream, const Factor& values, std::byte* workspace) const;
  const void* weights(Stream& stream, const Factor& weights, std::byte* workspace) const;
  const void* output_gradient(Stream& stream, const Factor& values, Workspace holds,
                              std::byte* workspace) const;

 private:
  const void* factor(Stream& stream, const Factor& values, std::int64_t count, Workspace holds,
                     std::byte* place) const;

  bool rounds_;
  FactorCounts counts_;
  std::size_t input_ = 0, weights_ = 0, output_gradient_ = 0;  // offsets in bytes
};

}  // namespace pipeoptim
