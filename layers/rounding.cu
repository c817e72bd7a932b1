#include <stdexcept>

#include "kernels/runtime/launch.h"
#include "layers/elementwise.h"
#include "layers/rounding.h"

namespace pipeoptim {
namespace {

struct Same {
  PO_HD float operator()(float value) const { return value; }
};

// Room for the rounded copy of what is given in a type.
std::size_t copy_bytes(std::int64_t count, ElementType type) {
  return type == ElementType::kBf16 ? 0 : static_cast<std::size_t>(count) * sizeof(Bf16);
}
Bf16* bf16_at(std::byte* workspace, std::size_t offset) {
  return reinterpret_cast<Bf16*>(workspace + offset);
}

}  // namespace

void round_to_bf16(Stream& stream, std::int64_t count, const float* values, Bf16* rounded) {
  for_each(stream, count, Map<Same, float, Bf16>{values, rounded});
}

void widen_bf16(Stream& stream, std::int64_t count, const Bf16* values, float* widened) {
  for_each(stream, count, Map<Same, Bf16, float>{values, widened});
}

const float* fp32_values(const Factor& factor) {
  if (factor.rounded != nullptr) {
    throw std::invalid_argument("a product of fp32 factors is given one that is rounded to bf16");
  }
  return factor.values;
}

float* fp32_values(const Destination& result) {
  if (result.rounded != nullptr) {
    throw std::invalid_argument("a product of fp32 factors is to be stored in bf16");
  }
  return result.values;
}

RoundedFactors::RoundedFactors(const FactorCounts& counts, const ElementTypes& types, ArenaPlan& workspace)
    : counts_(counts),
      input_(workspace.reserve(copy_bytes(counts.input, types.input))),
      weights_(workspace.reserve(copy_bytes(counts.weights, ElementType::kFp32))),
      output_gradient_(workspace.reserve(copy_bytes(counts.output, types.output))) {}

const Bf16* RoundedFactors::input(Stream& stream, const Factor& values, std::byte* workspace) const {
  if (values.rounded != nullptr) return values.rounded;
  Bf16* const rounded = bf16_at(workspace, input_);
  round_to_bf16(stream, counts_.input, values.values, rounded);
  return rounded;
}

const Bf16* RoundedFactors::weights(Stream& stream, const Factor& weights, std::byte* workspace) const {
  if (weights.rounded != nullptr) return weights.rounded;
  Bf16* const rounded = bf16_at(workspace, weights_);
  round_to_bf16(stream, counts_.weights, weights.values, rounded);
  return rounded;
}

const Bf16* RoundedFactors::output_gradient(Stream& stream, const Factor& values, Workspace holds,
                                            std::byte* workspace) const {
  if (values.rounded != nullptr) return values.rounded;
  Bf16* const rounded = bf16_at(workspace, output_gradient_);
  if (holds == Workspace::kUndefined) round_to_bf16(stream, counts_.output, values.values, rounded);
  return rounded;
}

PlanFactors::PlanFactors(MatrixPrecision precision, const FactorCounts& counts, const ElementTypes& types,
                         ArenaPlan& workspace) {
  if (precision == MatrixPrecision::kBf16) rounded_.emplace(counts, types, workspace);
}

const void* PlanFactors::input(Stream& stream, const Factor& values, std::byte* workspace) const {
  if (!rounded_) return fp32_values(values);
  return rounded_->input(stream, values, workspace);
}

const void* PlanFactors::weights(Stream& stream, const Factor& weights, std::byte* workspace) const {
  if (!rounded_) return fp32_values(weights);
  return rounded_->weights(stream, weights, workspace);
}

const void* PlanFactors::output_gradient(Stream& stream, const Factor& values, Workspace holds,
                                         std::byte* workspace) const {
  if (!rounded_) return fp32_values(values);
  return rounded_->output_gradient(stream, values, holds, workspace);
}

}  // namespace pipeoptim
