#include <stdexcept>

#include "optim/step.h"

namespace pipeoptim {
namespace {

void require_apart(const float* weights, const float* predicted) {
  if (weights == predicted) {
    throw std::invalid_argument("predicted weights need memory of their own at a horizon above 0");
  }
}

}  // namespace

StepOptimizer::StepOptimizer(Device device, SlotNames names, StepDecays decays, const OptimizerConfig& config,
                             OptimizerArena arena)
    : plan_(device, config, decays, std::move(arena)),
      names_(names),
      predictor_(config.predictor),
      step_decay_(config.step_decay),
      stride_(slot_stride(plan_.elements())),
      slots_(device, static_cast<std::size_t>(slots() * stride_)) {}

void StepOptimizer::update(Stream& stream, float* weights, const float* gradients, float lr) {
  start(stream, {.update = tracked_update(), .weights = weights, .gradients = gradients, .lr = lr}, {});
}

void StepOptimizer::predict(Stream& stream, const float* weights, float* predicted, Lookahead ahead) {
  require_lookahead(predictor_, ahead);
  const Pass pass{.prediction = prediction(ahead),
                  .weights = const_cast<float*>(weights),
                  .predicted = predicted,
                  .travel = travel(predictor_, ahead)};
  if (pass.prediction == Prediction::kCopy && weights == predicted) return;
  require_apart(weights, predicted);
  start(stream, pass, ahead);
}

void StepOptimizer::update_predict(Stream& stream, float* weights, const float* gradients, float lr,
                                   float* predicted, Lookahead ahead) {
  require_lookahead(predictor_, ahead);
  const Pass pass{.update = tracked_update(),
                  .prediction = prediction(ahead),
                  .weights = weights,
                  .gradients = gradients,
                  .predicted = predicted,
                  .lr = lr,
                  .travel = travel(predictor_, ahead)};
  if (pass.prediction == Prediction::kCopy && weights == predicted) {
    return update(stream, weights, gradients, lr);
  }
  require_apart(weights, predicted);
  start(stream, pass, ahead);
}

std::vector<std::pair<std::string, float*>> StepOptimizer::state() {
  std::vector<std::pair<std::string, float*>> named;
  for (int i = 0; i < names_.count; ++i) named.emplace_back(names_.names[i], slot(i));
  if (tracks()) named.emplace_back("step_average", slot(names_.count));
  return named;
}

Prediction StepOptimizer::prediction(const Lookahead& ahead) const {
  if (ahead.distance == 0 || predictor_ == Predictor::kNone) return Prediction::kCopy;
  if (predictor_ == Predictor::kDifference) return Prediction::kDifference;
  return predictor_ == Predictor::kGeometric ? Prediction::kGeometric : Prediction::kLinear;
}

void StepOptimizer::start(Stream& stream, const Pass& pass, const Lookahead& ahead) {
  require_step_alignment(stream.device(), pass.weights, pass.gradients, pass.predicted);
  if (pass.update != Update::kNone) plan_.begin_step(stream, pass.gradients);
  if (pass.prediction == Prediction::kGeometric) plan_.plan_coast(stream, ahead.rates);
  run(stream, pass);
}

}  // namespace pipeoptim
