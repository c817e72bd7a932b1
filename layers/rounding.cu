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

PlanFactors::PlanFactors(MatrixPrecision precision, const FactorCounts& counts, const ElementTypes& types,
                         ArenaPlan& workspace)
    : rounds_(precision == MatrixPrecision::kBf16), counts_(counts) {
  if (!rounds_) return;
  input_ = workspace.reserve(copy_bytes(counts.input, types.input));
  weights_ = workspace.reserve(copy_bytes(counts.weights, ElementType::kFp32));
  output_gradient_ = workspace.reserve(copy_bytes(counts.output, types.output));
}

const void* PlanFactors::factor(Stream& stream, const Factor& values, std::int64_t count, Workspace holds,
                                std::byte* place) const {
  if (!rounds_) return fp32_values(values);
  if (values.rounded != nullptr) return values.rounded;
  auto* const rounded = reinterpret_cast<Bf16*>(place);
  if (holds == Workspace::kUndefined) round_to_bf16(stream, count, values.values, rounded);
  return rounded;
}

const void* PlanFactors::input(Stream& stream, const Factor& values, std::byte* workspace) const {
  return factor(stream, values, counts_.input, Workspace::kUndefined, workspace + input_);
}

const void* PlanFactors::weights(Stream& stream, const Factor& weights, std::byte* workspace) const {
  return factor(stream, weights, counts_.weights, Workspace::kUndefined, workspace + weights_);
}

const void* PlanFactors::output_gradient(Stream& stream, const Factor& values, Workspace holds,
                                         std::byte* workspace) const {
  return factor(stream, values, counts_.output, holds, workspace + output_gradient_);
}

}  // namespace pipeoptim
