// The losses of one pass: what they are made of, and their results, which arrive some micro-batches later and
// are handed to the caller mini-batch by mini-batch. Private to pipeline.
#pragma once

#include <cstdint>

#include "pipeline/engine_core.h"

namespace pipeoptim {

class LossRunner {
 public:
  LossRunner(EngineCore& core, const Schedule& schedule, Mode mode, const TrainPass& pass)
      : core_(core), microbatches_per_update_(schedule.microbatches_per_update), mode_(mode), pass_(pass) {}

  // One loss, on the last stage's compute stream. In training it makes the slot's output gradient. What
  // begin() and end() do stays outside of graphs; run() only enqueues work.
  LossContext begin(const Instruction& instruction);
  void run(const LossContext& context);
  void end(const Instruction& instruction);

  // Hand over the results that have come in, or, when the streams are idle, the rest. Return whether the
  // caller has answered one by asking to stop, throw DataError where a training's loss is not finite.
  bool take_results();
  bool take_all_results();

  // Loss, records, labels and correct ones of the pass.
  void add_totals(PassResult& result) const;

 private:
  Stream& stream() const { return core_.lanes.back()->streams[kCompute]; }
  static std::size_t result_entry(std::int64_t result) {
    return static_cast<std::size_t>(result % kResultRing);
  }
  void take_result();
  void hand_over(const StepResult& step);

  EngineCore& core_;
  std::int64_t microbatches_per_update_;
  Mode mode_;
  const TrainPass& pass_;
  std::int64_t issued_ = 0, taken_ = 0;  // micro-batches
  double step_loss_ = 0, total_loss_ = 0;
  std::int64_t step_correct_ = 0;
  PassResult totals_;
  bool asked_to_stop_ = false;
};

}  // namespace pipeoptim
