// Makes an Optimizer out of a rule: the update, the prediction, and both in one pass, where the new state is
// still in registers when the predicted weight is computed from it.
//
// Include only from .cu files. A user's own rule becomes an optimizer by
//   RuleOptimizer<MyRule>(device, MyRule{...}, {.beta1 = ...}, config, arena)
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/pack.h"
#include "optim/guard.h"
#include "optim/optimizer.h"
#include "optim/rule.h"

namespace pipeoptim {

enum class Prediction { kNone, kCopy, kLinear, kGeometric };

template <typename Rule>
struct StepArguments {
  Rule rule;
  const StepState* state;
  const ArenaChunk* chunks;
  const CoastPlan* coast;
  float* slots;
  std::int64_t slot_stride;
  float* weights;
  const float* gradients;
  float* predicted;
  float lr;
  float travel;  // of the linear predictors: what multiplies the direction
};

// The elements of one chunk; the scalars are in registers and nothing depends on the element any more.
template <typename Rule, bool kUpdates, Prediction kPrediction>
struct StepElements {
  Rule rule;
  const CoastPlan* coast;
  float* __restrict__ slots;
  std::int64_t slot_stride;
  float* __restrict__ weights;
  const float* __restrict__ gradients;
  float* __restrict__ predicted;
  StepNow now;
  float gradient_scale;
  float travel;

  template <int kWidth>
  PO_HD void at(std::int64_t i) const {
    constexpr bool kNeedsSlots =
        kUpdates || kPrediction == Prediction::kLinear || kPrediction == Prediction::kGeometric;
    using P = Pack<kWidth>;
    P weight = *reinterpret_cast<const P*>(weights + i);
    P gradient{}, ahead;
    P state[Rule::kSlots];
    if constexpr (kUpdates) gradient = *reinterpret_cast<const P*>(gradients + i);
    if constexpr (kNeedsSlots) {
      for (int slot = 0; slot < Rule::kSlots; ++slot) {
        state[slot] = *reinterpret_cast<const P*>(slots + slot * slot_stride + i);
      }
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      float own[Rule::kSlots];
      if constexpr (kNeedsSlots) {
        for (int slot = 0; slot < Rule::kSlots; ++slot) own[slot] = state[slot].value[lane];
      }
      float w = weight.value[lane];
      if constexpr (kUpdates) {
        w = rule.advance(w, gradient_scale * gradient.value[lane], own, now);
        weight.value[lane] = w;
        for (int slot = 0; slot < Rule::kSlots; ++slot) state[slot].value[lane] = own[slot];
      }
      if constexpr (kPrediction == Prediction::kCopy) ahead.value[lane] = w;
      if constexpr (kPrediction == Prediction::kLinear) {
        ahead.value[lane] = w - travel * rule.direction(own, now.scalars);
      }
      if constexpr (kPrediction == Prediction::kGeometric) {
        if constexpr (CoastsByStep<Rule>) {
          for (int step = 0; step < coast->steps; ++step) {
            w = rule.coast_step(w, own, coast->step[step], now.weight_decay);
          }
          ahead.value[lane] = w;
        } else {
          ahead.value[lane] = rule.coast(w, own, *coast, now.weight_decay);
        }
      }
    }
    if constexpr (kUpdates) {
      *reinterpret_cast<P*>(weights + i) = weight;
      for (int slot = 0; slot < Rule::kSlots; ++slot) {
        *reinterpret_cast<P*>(slots + slot * slot_stride + i) = state[slot];
      }
    }
    if constexpr (kPrediction != Prediction::kNone) *reinterpret_cast<P*>(predicted + i) = ahead;
  }
};

// One coming step of all elements of a chunk, in place in the predicted weights.
template <typename Rule>
struct CoastElements {
  Rule rule;
  const float* __restrict__ slots;
  std::int64_t slot_stride;
  float* __restrict__ predicted;
  CoastStep step;
  float weight_decay;

  template <int kWidth>
  PO_HD void at(std::int64_t i) const {
    float own[Rule::kSlots];
    for (int slot = 0; slot < Rule::kSlots; ++slot) own[slot] = slots[slot * slot_stride + i];
    predicted[i] = rule.coast_step(predicted[i], own, step, weight_decay);
  }
};

// Calls elements.at() for all of [begin, end): on CUDA in packs of four where the address allows.
template <typename Elements, typename Team>
PO_HD void for_all_elements(const Elements& elements, std::int64_t begin, std::int64_t end,
                            const Team& team) {
#if defined(__CUDA_ARCH__)
  const std::int64_t aligned = (begin + 3) / 4 * 4;
  const std::int64_t head = aligned < end ? aligned : end;
  const std::int64_t tail = head + (end - head) / 4 * 4;
  const std::int64_t rank = team.rank(), size = team.size();
  for (std::int64_t i = begin + rank; i < head; i += size) elements.template at<1>(i);
  for (std::int64_t i = head + 4 * rank; i < tail; i += 4 * size) elements.template at<4>(i);
  for (std::int64_t i = tail + rank; i < end; i += size) elements.template at<1>(i);
#else
  static_cast<void>(team);
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) elements.template at<1>(i);
#endif
}

// The body of all passes. What a step has decided on the device (skipped, or none completed yet) is looked up
// once a chunk and chooses the loop.
template <typename Rule, bool kUpdates, Prediction kPrediction>
struct StepBody {
  static constexpr bool kLongRows = true;  // chunks
  StepArguments<Rule> arguments;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const StepState& state = *arguments.state;
    const bool updates = kUpdates && state.skip == 0;
    if (updates) {
      run<kUpdates, kPrediction>(row, team);  // completes a step, so that there is a direction
    } else if constexpr (kPrediction != Prediction::kNone) {
      if (state.scalars.steps == 0) {
        run<false, Prediction::kCopy>(row, team);
      } else {
        run<false, kPrediction>(row, team);
      }
    }
  }

  template <bool kUpdatesNow, Prediction kPredictionNow, typename Team>
  PO_HD void run(std::int64_t row, const Team& team) const {
    const StepArguments<Rule>& a = arguments;
    const ArenaChunk chunk = a.chunks[row];
#if !defined(__CUDA_ARCH__)
    // The host coasts in loops over the chunk, which is in its cache; the same operations in the same order.
    if constexpr (kPredictionNow == Prediction::kGeometric && CoastsByStep<Rule>) {
      run<kUpdatesNow, Prediction::kCopy>(row, team);
      for (int i = 0; i < a.coast->steps; ++i) {
        const CoastElements<Rule> elements{a.rule,      a.slots,          a.slot_stride,
                                           a.predicted, a.coast->step[i], chunk.weight_decay};
        for_all_elements(elements, chunk.begin, chunk.end, team);
      }
      return;
    }
#endif
    const StepElements<Rule, kUpdatesNow, kPredictionNow> elements{
        a.rule,
        a.coast,
        a.slots,
        a.slot_stride,
        a.weights,
        a.gradients,
        a.predicted,
        {a.state->scalars, a.lr, chunk.weight_decay},
        a.state->gradient_scale,
        a.travel};
    for_all_elements(elements, chunk.begin, chunk.end, team);
  }
};

// The arena cut into chunks and the scalars' state, which every rule has alike. Validates the arena.
class StepPlan {
 public:
  StepPlan(Device device, const OptimizerConfig& config, StepDecays decays, OptimizerArena arena);

  // One pass over the gradient: decides about the coming step.
  void begin_step(Stream& stream, const float* gradients);
  void plan_coast(Stream& stream, LearningRates rates);
  void restore(Stream& stream, const OptimizerStatus& from);
  void copy_status(Stream& stream, OptimizerStatus* to);

  std::int64_t elements() const { return elements_; }
  std::int64_t chunk_count() const { return static_cast<std::int64_t>(chunks_.size()); }
  const ArenaChunk* chunks() const { return chunks_.data(); }
  const StepState* state() const { return state_.data(); }
  const CoastPlan* coast() const { return coast_.data(); }

 private:
  std::int64_t elements_ = 0;
  StepDecays decays_;
  double clip_norm_ = 0;
  Buffer<ArenaChunk> chunks_;
  Buffer<ArenaRange> names_;
  Buffer<double> partials_;
  Buffer<StepState> state_;
  Buffer<CoastPlan> coast_;
};

// The linear predictors' factor of the direction. Throws std::invalid_argument for more than kMaxHorizon
// steps.
float linear_travel(Predictor predictor, LearningRates rates);

// Elements from one slot array to the next.
std::int64_t slot_stride(std::int64_t elements);

// Throws std::invalid_argument where the accesses of 16 bytes on CUDA could not be made.
void require_step_alignment(Device device, const float* weights, const float* gradients,
                            const float* predicted);

template <typename Rule>
class RuleOptimizer final : public Optimizer {
 public:
  // `decays` are those of the rule's first and second moment: they make the corrections that its functions
  // read.
  RuleOptimizer(Device device, const Rule& rule, StepDecays decays, const OptimizerConfig& config,
                OptimizerArena arena)
      : plan_(device, config, decays, std::move(arena)),
        rule_(rule),
        predictor_(config.predictor),
        stride_(slot_stride(plan_.elements())),
        slots_(device, static_cast<std::size_t>(Rule::kSlots * stride_)) {}

  int slots() const override { return Rule::kSlots; }

  void update(Stream& stream, float* weights, const float* gradients, float lr) override {
    plan_.begin_step(stream, gradients);
    launch<true, Prediction::kNone>(stream, arguments(weights, gradients, lr, nullptr, {}));
  }

  void predict(Stream& stream, const float* weights, float* predicted, LearningRates rates) override {
    // The pass does not write what it does not update.
    const StepArguments<Rule> given = arguments(const_cast<float*>(weights), nullptr, 0, predicted, rates);
    if (rates.empty()) {
      if (weights != predicted) launch<false, Prediction::kCopy>(stream, given);
      return;
    }
    require_apart(weights, predicted);
    if (predictor_ == Predictor::kGeometric) {
      plan_.plan_coast(stream, rates);
      return launch<false, Prediction::kGeometric>(stream, given);
    }
    launch<false, Prediction::kLinear>(stream, given);
  }

  void update_predict(Stream& stream, float* weights, const float* gradients, float lr, float* predicted,
                      LearningRates rates) override {
    if (rates.empty() && weights == predicted) return update(stream, weights, gradients, lr);
    require_apart(weights, predicted);
    const StepArguments<Rule> given = arguments(weights, gradients, lr, predicted, rates);
    plan_.begin_step(stream, gradients);
    if (rates.empty()) return launch<true, Prediction::kCopy>(stream, given);
    if (predictor_ == Predictor::kGeometric) {
      plan_.plan_coast(stream, rates);
      return launch<true, Prediction::kGeometric>(stream, given);
    }
    launch<true, Prediction::kLinear>(stream, given);
  }

  std::vector<std::pair<std::string, float*>> state() override {
    std::vector<std::pair<std::string, float*>> named;
    for (int slot = 0; slot < Rule::kSlots; ++slot) {
      named.emplace_back(Rule::kSlotNames[slot], slots_.data() + slot * stride_);
    }
    return named;
  }

  void copy_status(Stream& stream, OptimizerStatus* to) override { plan_.copy_status(stream, to); }
  void restore_status(Stream& stream, const OptimizerStatus& from) override { plan_.restore(stream, from); }

 private:
  StepArguments<Rule> arguments(float* weights, const float* gradients, float lr, float* predicted,
                                LearningRates rates) const {
    return {.rule = rule_,
            .state = plan_.state(),
            .chunks = plan_.chunks(),
            .coast = plan_.coast(),
            .slots = slots_.data(),
            .slot_stride = stride_,
            .weights = weights,
            .gradients = gradients,
            .predicted = predicted,
            .lr = lr,
            .travel = linear_travel(predictor_, rates)};
  }

  static void require_apart(const float* weights, const float* predicted) {
    if (weights == predicted) {
      throw std::invalid_argument("predicted weights need memory of their own at a horizon above 0");
    }
  }

  template <bool kUpdates, Prediction kPrediction>
  void launch(Stream& stream, const StepArguments<Rule>& given) {
    require_step_alignment(stream.device(), given.weights, given.gradients, given.predicted);
    for_each_row(stream, plan_.chunk_count(), kChunkElements, StepBody<Rule, kUpdates, kPrediction>{given});
  }

  StepPlan plan_;
  Rule rule_;
  Predictor predictor_;
  std::int64_t stride_;
  Buffer<float> slots_;
};

}  // namespace pipeoptim
