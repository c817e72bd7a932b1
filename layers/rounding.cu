#include <stdexcept>

#include "kernels/runtime/launch.h"
#include "layers/elementwise.h"
#include "layers/rounding.h"

namespace pipeoptim {
namespace {

struct Round {
  PO_HD Bf16 operator()(float value) const { return to_bf16(value); }
};
struct Widen {
  PO_HD float operator()(Bf16 value) const { return to_float(value); }
};

std::size_t bf16_bytes(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(Bf16); }
Bf16* bf16_at(std::byte* workspace, std::size_t offset) {
  return reinterpret_cast<Bf16*>(workspace + offset);
}

}  // namespace

void round_to_bf16(Stream& stream, std::int64_t count, const float* values, Bf16* rounded) {
  for_each(stream, count, Map<Round, float, Bf16>{values, rounded});
}

void widen_bf16(Stream& stream, std::int64_t count, const Bf16* values, float* widened) {
  for_each(stream, count, Map<Widen, Bf16, float>{values, widened});
}

const float* fp32_weights(const Factor& weights) {
  if (weights.rounded != nullptr) {
    throw std::invalid_argument("a product of fp32 factors is given weights that are rounded to bf16");
  }
  return weights.values;
}

RoundedFactors::RoundedFactors(const FactorCounts& counts, ArenaPlan& workspace)
    : counts_(counts),
      input_(workspace.reserve(bf16_bytes(counts.input))),
      weights_(workspace.reserve(bf16_bytes(counts.weights))),
      output_gradient_(workspace.reserve(bf16_bytes(counts.output))) {}

const Bf16* RoundedFactors::input(Stream& stream, const float* values, std::byte* workspace) const {
  Bf16* const rounded = bf16_at(workspace, input_);
  round_to_bf16(stream, counts_.input, values, rounded);
  return rounded;
}

const Bf16* RoundedFactors::weights(Stream& stream, const Factor& weights, std::byte* workspace) const {
  if (weights.rounded != nullptr) return weights.rounded;
  Bf16* const rounded = bf16_at(workspace, weights_);
  round_to_bf16(stream, counts_.weights, weights.values, rounded);
  return rounded;
}

const Bf16* RoundedFactors::output_gradient(Stream& stream, const float* values, Workspace holds,
                                            std::byte* workspace) const {
  Bf16* const rounded = bf16_at(workspace, output_gradient_);
  if (holds == Workspace::kUndefined) round_to_bf16(stream, counts_.output, values, rounded);
  return rounded;
}

PlanFactors::PlanFactors(MatrixPrecision precision, const FactorCounts& counts, ArenaPlan& workspace) {
  if (precision == MatrixPrecision::kBf16) rounded_.emplace(counts, workspace);
}

const void* PlanFactors::input(Stream& stream, const float* values, std::byte* workspace) const {
  if (!rounded_) return values;
  return rounded_->input(stream, values, workspace);
}

const void* PlanFactors::weights(Stream& stream, const Factor& weights, std::byte* workspace) const {
  if (!rounded_) return fp32_weights(weights);
  return rounded_->weights(stream, weights, workspace);
}

const void* PlanFactors::output_gradient(Stream& stream, const float* values, Workspace holds,
                                         std::byte* workspace) const {
  if (!rounded_) return values;
  return rounded_->output_gradient(stream, values, holds, workspace);
}

}  // namespace pipeoptim
