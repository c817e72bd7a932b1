#include "pipeline/loss_runner.h"

#include <cmath>
#include <string>
#include <utility>

#include "kernels/runtime/error.h"

namespace pipeoptim {

LossContext LossRunner::begin(const Instruction& instruction) {
  if (issued_ - taken_ == kResultRing) {
    core_.result_ready[result_entry(taken_)].synchronize();
    take_result();
  }
  const std::int64_t labels = core_.label_entry(instruction);
  const std::size_t result = result_entry(issued_);
  stream().wait(core_.label_ready[static_cast<std::size_t>(labels)]);
  const Stage& stage = core_.stages.back();
  const LossContext context{
      .stream = stream(),
      .logits = stage.output(instruction.slot),
      .labels = core_.labels.data() + labels * core_.microbatch_labels(),
      .logits_gradient = mode_ == Mode::kTraining ? stage.output_gradient(instruction.slot) : Tensor{},
      .loss_sum = core_.loss_sums.data() + result,
      .correct = core_.correct.data() + result,
      .scale = 1.0F / static_cast<float>(core_.minibatch_labels()),
      .workspace = core_.loss_workspace.data()};
  if (core_.uses_graphs(mode_)) core_.repeated_loss->post(context);
  return context;
}

void LossRunner::run(const LossContext& context) {
  if (core_.uses_graphs(mode_)) return core_.repeated_loss->run(*core_.loss, context);
  core_.loss->run(context);
}

void LossRunner::end(const Instruction& instruction) {
  stream().record(core_.label_free[static_cast<std::size_t>(core_.label_entry(instruction))]);
  stream().record(core_.result_ready[result_entry(issued_)]);
  ++issued_;
}

bool LossRunner::take_results() {
  while (taken_ < issued_ && core_.result_ready[result_entry(taken_)].done()) take_result();
  return std::exchange(asked_to_stop_, false);
}

bool LossRunner::take_all_results() {
  while (taken_ < issued_) take_result();
  return std::exchange(asked_to_stop_, false);
}

void LossRunner::take_result() {
  const std::size_t entry = result_entry(taken_);
  step_loss_ += core_.loss_sums.data()[entry];
  step_correct_ += core_.correct.data()[entry];
  ++taken_;
  if (taken_ % microbatches_per_update_ != 0) return;
  StepResult step;
  step.step = pass_.first_step + taken_ / microbatches_per_update_ - 1;
  step.loss = step_loss_ / static_cast<double>(core_.minibatch_labels());
  step.records = core_.minibatch_records;
  step.labels = core_.minibatch_labels();
  step.correct = step_correct_;
  total_loss_ += step_loss_;
  step_loss_ = 0;
  step_correct_ = 0;
  hand_over(step);
}

void LossRunner::hand_over(const StepResult& step) {
  totals_.records += step.records;
  totals_.labels += step.labels;
  totals_.correct += step.correct;
  if (mode_ == Mode::kTraining && !std::isfinite(step.loss)) {
    throw DataError("step " + std::to_string(step.step) + ": the loss is " + std::to_string(step.loss) +
                    "; training stops before it spoils more (a lower --lr, --clip-norm or warm-up may help)");
  }
  if (pass_.on_step && !pass_.on_step(step)) asked_to_stop_ = true;
}

void LossRunner::add_totals(PassResult& result) const {
  result.records = totals_.records;
  result.labels = totals_.labels;
  result.correct = totals_.correct;
  if (totals_.labels > 0) result.loss = total_loss_ / static_cast<double>(totals_.labels);
}

}  // namespace pipeoptim
