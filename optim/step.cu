#include <stdexcept>
#include <string>

#include "optim/step.h"

namespace pipeoptim {
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

void StepOptimizer::predict(Stream& stream, const float* weights, PredictedWeights predicted,
                            Lookahead ahead) {
  require_lookahead(predictor_, ahead);
  start(stream,
        {.prediction = prediction(ahead.distance),
         .weights = const_cast<float*>(weights),
         .predicted = predicted,
         .travel = travel(predictor_, ahead)},
        ahead.rates);
}

void StepOptimizer::update_predict(Stream& stream, float* weights, const float* gradients, float lr,
                                   PredictedWeights predicted, Lookahead ahead) {
  require_lookahead(predictor_, ahead);
  start(stream,
        {.update = tracked_update(),
         .prediction = prediction(ahead.distance),
         .weights = weights,
         .gradients = gradients,
         .predicted = predicted,
         .lr = lr,
         .travel = travel(predictor_, ahead)},
        ahead.rates);
}

void StepOptimizer::repeat(Stream& stream, const RepeatedStep& step) {
  start(stream,
        {.update = step.gradients == nullptr ? Update::kNone : tracked_update(),
         .prediction = step.predicted ? prediction(step.distance) : Prediction::kNone,
         .weights = step.weights,
         .gradients = step.gradients,
         .predicted = step.predicted.value_or(PredictedWeights{}),
         .rates = step.rates},
        {});
}

std::vector<std::pair<std::string, float*>> StepOptimizer::state() {
  std::vector<std::pair<std::string, float*>> named;
  for (int i = 0; i < names_.count; ++i) named.emplace_back(names_.names[i], slot(i));
  if (tracks()) named.emplace_back("step_average", slot(names_.count));
  return named;
}

Prediction StepOptimizer::prediction(int distance) const {
  if (distance == 0 || predictor_ == Predictor::kNone) return Prediction::kCopy;
  if (predictor_ == Predictor::kDifference) return Prediction::kDifference;
  return predictor_ == Predictor::kGeometric ? Prediction::kGeometric : Prediction::kLinear;
}

// A copy onto the weights themselves is none. Throws std::invalid_argument where the prediction could not be
// written.
bool StepOptimizer::in_place(const Pass& pass) const {
  const bool rounds = plan_.rounded_elements() > 0, rounds_all = plan_.rounded_elements() == plan_.elements();
  if (rounds != (pass.predicted.rounded != nullptr)) {
    throw std::invalid_argument(
        "memory for rounded predictions is needed where there are such elements, here " +
        std::to_string(plan_.rounded_elements()) + ", and only there");
  }
  if (rounds_all) return false;
  if (pass.predicted.values == nullptr) throw std::invalid_argument("predicted weights were given no memory");
  if (pass.weights != pass.predicted.values) return false;
  if (pass.prediction == Prediction::kCopy && !rounds) return true;
  throw std::invalid_argument("predicted weights need memory of their own, but for a copy in fp32");
}

// `coming`: the rates of a prediction that does not find them in memory.
void StepOptimizer::start(Stream& stream, Pass pass, LearningRates coming) {
  if (pass.prediction != Prediction::kNone && in_place(pass)) pass.prediction = Prediction::kNone;
  if (pass.update == Update::kNone && pass.prediction == Prediction::kNone) return;
  require_step_alignment(stream.device(),
                         {pass.weights, pass.gradients, pass.predicted.values, pass.predicted.rounded});
  if (pass.update != Update::kNone) plan_.begin_step(stream, pass.gradients);
  if (pass.prediction == Prediction::kGeometric) {
    if (pass.rates != nullptr) {
      plan_.plan_coast(stream, pass.rates);
    } else {
      plan_.plan_coast(stream, coming);
    }
  }
  run(stream, pass);
}

}  // namespace pipeoptim
