#include <stdexcept>

#include "kernels/random.h"
#include "kernels/runtime/launch.h"
#include "layers/dropout.h"

namespace pipeoptim {
namespace {

struct MaskElement {
  const float* from;
  float* to;
  RandomKey random;
  std::uint32_t threshold;
  float gain;

  PO_HD void operator()(std::int64_t i) const {
    const std::uint32_t bits =
        random_u32(random.seed, random.minibatch, random.layer, static_cast<std::uint64_t>(i));
    to[i] = bits < threshold ? 0.0F : from[i] * gain;
  }
};

struct CopyElement {
  const float* from;
  float* to;
  PO_HD void operator()(std::int64_t i) const { to[i] = from[i]; }
};

}  // namespace

Dropout::Dropout(double probability) : probability_(probability) {
  if (!(probability >= 0 && probability < 1)) {
    throw std::invalid_argument("dropout: the probability must be in [0, 1), got " +
                                std::to_string(probability));
  }
  threshold_ = static_cast<std::uint32_t>(probability * 4294967296.0);
  gain_ = static_cast<float>(1 / (1 - probability));
}

std::string Dropout::describe() const { return "dropout " + std::to_string(probability_).substr(0, 4); }

LayerPlan Dropout::plan(Device, int, const Shape& input) {
  LayerPlan plan;
  plan.output = input;
  plan.needs = Needs::kNothing;
  plan.in_place = true;
  plan.bytes = 4.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}

void Dropout::forward(const ForwardContext& context) const {
  if (context.mode == Mode::kTraining) {
    for_each(context.stream, context.input.elements(),
             MaskElement{context.input.data, context.output.data, context.random, threshold_, gain_});
  } else if (context.input.data != context.output.data) {
    for_each(context.stream, context.input.elements(), CopyElement{context.input.data, context.output.data});
  }
}

void Dropout::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  for_each(context.stream, context.output_gradient.elements(),
           MaskElement{context.output_gradient.data, context.input_gradient.data, context.random, threshold_,
                       gain_});
}

}  // namespace pipeoptim
