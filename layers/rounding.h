// Factors of products in bf16: fp32 values are rounded into a workspace, to the nearest value (kernels/
// runtime/bf16.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

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

// Places in the workspace of a plan of kBf16 for those that may be given in fp32. Each call gives a factor in
// bf16, and enqueues its rounding where there is no copy yet.
class RoundedFactors {
 public:
  RoundedFactors(const FactorCounts& counts, const ElementTypes& types, ArenaPlan& workspace);

  const Bf16* input(Stream& stream, const Factor& values, std::byte* workspace) const;
  const Bf16* weights(Stream& stream, const Factor& weights, std::byte* workspace) const;
  const Bf16* output_gradient(Stream& stream, const Factor& values, Workspace holds,
                              std::byte* workspace) const;

 private:
  FactorCounts counts_;
  std::size_t input_, weights_, output_gradient_;  // offsets in bytes
};

// The factors of a plan in the type of its precision: as RoundedFactors where that is kBf16, else as they are
// given.
class PlanFactors {
 public:
  PlanFactors(MatrixPrecision precision, const FactorCounts& counts, const ElementTypes& types,
              ArenaPlan& workspace);

  const void* input(Stream& stream, const Factor& values, std::byte* workspace) const;
  const void* weights(Stream& stream, const Factor& weights, std::byte* workspace) const;
  const void* output_gradient(Stream& stream, const Factor& values, Workspace holds,
                              std::byte* workspace) const;

 private:
  std::optional<RoundedFactors> rounded_;
};

}  // namespace pipeoptim
