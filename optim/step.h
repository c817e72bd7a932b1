// Makes an Optimizer out of a rule.
//
// Include only from .cu files. A user's own rule becomes an optimizer by
//   RuleOptimizer<MyRule>(device, MyRule{...}, {.beta1 = ...}, config, arena)
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "optim/optimizer.h"
#include "optim/passes.h"
#include "optim/plan.h"

namespace pipeoptim {

// State arrays of a rule and their names.
struct SlotNames {
  int count = 0;
  const char* const* names = nullptr;
};

template <typename Rule>
SlotNames slot_names() {
  return {Rule::kSlots, Rule::kSlotNames};
}

// What all rules have alike: the checks, the guard before an update, the state, and which pass a call is.
class StepOptimizer : public Optimizer {
 public:
  int slots() const final { return names_.count + (tracks() ? 1 : 0); }
  void update(Stream& stream, float* weights, const float* gradients, float lr) final;
  void predict(Stream& stream, const float* weights, PredictedWeights predicted, Lookahead ahead) final;
  void update_predict(Stream& stream, float* weights, const float* gradients, float lr,
                      PredictedWeights predicted, Lookahead ahead) final;
  void repeat(Stream& stream, const RepeatedStep& step) final;
  std::vector<std::pair<std::string, float*>> state() final;
  void copy_status(Stream& stream, OptimizerStatus* to) final { plan_.copy_status(stream, to); }
  void restore_status(Stream& stream, const OptimizerStatus& from) final { plan_.restore(stream, from); }

 protected:
  struct Pass {
    Update update = Update::kNone;
    Prediction prediction = Prediction::kNone;
    float* weights = nullptr;  // a pass without an update does not write them
    const float* gradients = nullptr;
    PredictedWeights predicted = {};
    float lr = 0;
    float travel = 0;
    const StepRates* rates = nullptr;  // of a repeated step, in place of the two
  };

  StepOptimizer(Device device, SlotNames names, StepDecays decays, const OptimizerConfig& config,
                OptimizerArena arena);

  // Enqueues the pass over all elements; the guard has decided about the update.
  virtual void run(Stream& stream, const Pass& pass) = 0;

  const StepPlan& plan() const { return plan_; }
  float* slot(int index) { return slots_.data() + index * stride_; }

  template <typename Rule>
  StepArguments<Rule> arguments(const Rule& rule, const Pass& pass) {
    return {.rule = rule,
            .state = plan_.state(),
            .coast = plan_.coast(),
            .slots = slots_.data(),
            .slot_stride = stride_,
            .step_average = tracks() ? slot(names_.count) : nullptr,
            .step_decay = static_cast<float>(step_decay_),
            .one_minus_step_decay = static_cast<float>(1 - step_decay_),
            .weights = pass.weights,
            .gradients = pass.gradients,
            .predicted = counted_from(plan_.rounded_elements(), pass.predicted.values),
            .rounded = pass.predicted.rounded,
            .lr = pass.lr,
            .travel = pass.travel,
            .in_memory = pass.rates};
  }

 private:
  bool tracks() const { return predictor_ == Predictor::kDifference; }
  Update tracked_update() const { return tracks() ? Update::kTrackedStep : Update::kStep; }
  Prediction prediction(int distance) const;
  bool in_place(const Pass& pass) const;
  void start(Stream& stream, Pass pass, LearningRates coming);

  StepPlan plan_;
  SlotNames names_;
  Predictor predictor_;
  double step_decay_;
  std::int64_t stride_;
  Buffer<float> slots_;
};

template <typename Rule>
class RuleOptimizer final : public StepOptimizer {
 public:
  // `decays` are those of the rule's running averages: they make the corrections that its functions read.
  RuleOptimizer(Device device, const Rule& rule, StepDecays decays, const OptimizerConfig& config,
                OptimizerArena arena)
      : StepOptimizer(device, slot_names<Rule>(), decays, config, std::move(arena)), rule_(rule) {}

 private:
  void run(Stream& stream, const Pass& pass) override {
    launch_pass(stream, plan().chunks(), pass.update, pass.prediction, arguments(rule_, pass));
  }

  Rule rule_;
};

}  // namespace pipeoptim
