// Interprets one pass of a schedule: each instruction becomes stream-ordered work.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/error.h"
#include "pipeline/engine_core.h"

namespace pipeoptim {
namespace {

const char* op_name(Op op) {
  switch (op) {
    case Op::kForward:
      return "F";
    case Op::kBackward:
      return "B";
    case Op::kBackwardInput:
      return "B input";
    case Op::kBackwardWeights:
      return "B weights";
    case Op::kUpdate:
      return "U";
    case Op::kPredict:
      return "P";
    case Op::kUpdatePredict:
      return "U+P";
    case Op::kStashWeights:
      return "stash";
    default:
      return "transfer";
  }
}

// Every micro-batch through all stages before the next: with forwards only, any number of slots will do.
std::vector<IssueStep> microbatch_order(const Schedule& schedule) {
  std::vector<IssueStep> steps;
  std::vector<std::int32_t> next(schedule.stages.size(), 0);
  for (std::int32_t j = 0; j < schedule.microbatches; ++j) {
    for (std::int32_t k = 0; k < schedule.depth(); ++k) {
      const Program& program = schedule.stages[static_cast<std::size_t>(k)];
      std::int32_t& index = next[static_cast<std::size_t>(k)];
      while (index < static_cast<std::int32_t>(program.size()) &&
             program[static_cast<std::size_t>(index)].microbatch == j) {
        steps.push_back({k, index++});
      }
    }
  }
  return steps;
}

struct Transfer {  // what a send leaves for its receive
  std::int32_t microbatch;
  std::int32_t slot;
};

// Interprets one pass. Lives as long as the pass; everything is stream-ordered, the steady state allocates
// nothing.
class PassRunner {
 public:
  PassRunner(EngineCore& core, BatchSource& source, const Schedule& schedule, Mode mode)
      : core_(core),
        source_(source),
        schedule_(schedule),
        mode_(mode),
        steps_(mode == Mode::kTraining ? issue_order(schedule) : microbatch_order(schedule)) {
    activations_.resize(core.stages.size());
    gradients_.resize(core.stages.size());
    batch_parts_left_ = std::vector<std::atomic<int>>(
        static_cast<std::size_t>(schedule.microbatches / schedule.microbatches_per_update));
    for (auto& parts : batch_parts_left_) parts = schedule.microbatches_per_update;
    minibatch_limit_ = schedule.microbatches / schedule.microbatches_per_update;
  }

  PassResult run(const TrainPass& pass) {
    pass_ = &pass;
    const auto begin = PassClock::now();
    prepare_records();
    try {
      for (const IssueStep& step : steps_) {
        const auto& program = schedule_.stages[static_cast<std::size_t>(step.stage)];
        const Instruction& instruction = program[static_cast<std::size_t>(step.index)];
        if (instruction.minibatch >= minibatch_limit_) continue;
        issue(step.stage, instruction);
        if (instruction.op == Op::kForward || instruction.op == Op::kBackward) core_.throw_if_failed();
        take_results(false);
      }
      for (auto& lane : core_.lanes) {
        for (Stream& stream : lane->streams) stream.synchronize();
      }
      take_results(true);
    } catch (...) {
      core_.drain();
      throw;
    }
    result_.seconds = std::chrono::duration<double>(PassClock::now() - begin).count();
    if (result_.records > 0) result_.loss = loss_total_ / static_cast<double>(result_.records);
    finish_records();
    return result_;
  }

 private:
  StageLane& lane(int k) { return *core_.lanes[static_cast<std::size_t>(k)]; }
  Stage& stage(int k) { return core_.stages[static_cast<std::size_t>(k)]; }
  bool last(int k) const { return k + 1 == core_.depth(); }
  std::int64_t ring(std::int64_t microbatch) const { return microbatch % core_.label_ring; }

  void issue(int k, const Instruction& instruction) {
    switch (instruction.op) {
      case Op::kForward:
        return issue_forward(k, instruction);
      case Op::kBackward:
        return issue_backward(k, instruction, Stage::Part::kBoth);
      case Op::kBackwardInput:
        return issue_backward(k, instruction, Stage::Part::kInput);
      case Op::kBackwardWeights:
        return issue_backward(k, instruction, Stage::Part::kWeights);
      case Op::kUpdate:
      case Op::kUpdatePredict:
      case Op::kPredict:
      case Op::kStashWeights:
        return issue_weights(k, instruction);
      case Op::kSendActivation:
        return activations_[static_cast<std::size_t>(k)].push_back(
            {instruction.microbatch, instruction.slot});
      case Op::kReceiveActivation:
        return receive_activation(k, instruction);
      case Op::kSendGradient:
        return gradients_[static_cast<std::size_t>(k)].push_back({instruction.microbatch, instruction.slot});
      case Op::kReceiveGradient:
        return receive_gradient(k, instruction);
    }
  }

  // Pops what the neighbour's send left; a mismatch means that the schedule and its validation disagree.
  static Transfer take(std::deque<Transfer>& queue, const Instruction& instruction, int k) {
    if (queue.empty() || queue.front().microbatch != instruction.microbatch) {
      throw std::logic_error("stage " + std::to_string(k) + ": " + to_string(instruction) +
                             " has no matching send");
    }
    const Transfer transfer = queue.front();
    queue.pop_front();
    return transfer;
  }

  void receive_activation(int k, const Instruction& instruction) {
    const Transfer from = take(activations_[static_cast<std::size_t>(k - 1)], instruction, k);
    StageLane& here = lane(k);
    StageLane& there = lane(k - 1);
    Stream& stream = here.streams[kActivations];
    stream.wait(there.output_ready[from.slot]);
    stream.wait(here.slot_free[instruction.slot]);
    copy_to_slot(k, kActivations, instruction, stage(k).input(instruction.slot),
                 stage(k - 1).output(from.slot));
    stream.record(here.input_ready[instruction.slot]);
    stream.record(there.output_consumed[from.slot]);
  }

  void receive_gradient(int k, const Instruction& instruction) {
    const Transfer from = take(gradients_[static_cast<std::size_t>(k + 1)], instruction, k);
    StageLane& here = lane(k);
    StageLane& there = lane(k + 1);
    Stream& stream = here.streams[kGradients];
    stream.wait(there.input_gradient_ready[from.slot]);
    stream.wait(here.slot_free[instruction.slot]);
    copy_to_slot(k, kGradients, instruction, stage(k).output_gradient(instruction.slot),
                 stage(k + 1).input_gradient(from.slot));
    stream.record(here.gradient_ready[instruction.slot]);
    stream.record(there.input_gradient_consumed[from.slot]);
  }

  // The input and the labels of a micro-batch, from the source's memory to the first and the last stage.
  void load(const Instruction& instruction) {
    const int micro = schedule_.microbatches_per_update;
    const int part = instruction.microbatch % micro;
    if (part == 0) batch_ = source_.acquire(instruction.minibatch);
    StageLane& here = lane(0);
    Stream& stream = here.streams[kActivations];
    const std::int64_t entry = ring(instruction.microbatch);
    const std::int64_t records = core_.microbatch_records;
    stream.wait(here.slot_free[instruction.slot]);
    copy_to_slot(0, kActivations, instruction, stage(0).input(instruction.slot),
                 batch_.inputs + part * core_.input.elements());
    stream.record(here.input_ready[instruction.slot]);
    stream.wait(core_.label_free[entry]);
    stream.copy(core_.labels.data() + entry * records, batch_.labels + part * records,
                static_cast<std::size_t>(records) * sizeof(std::int32_t));
    stream.record(core_.label_ready[entry]);
    std::atomic<int>* left = &batch_parts_left_[static_cast<std::size_t>(instruction.minibatch)];
    BatchSource* source = &source_;
    stream.submit([left, source, t = instruction.minibatch] {
      if (left->fetch_sub(1) == 1) source->release(t);
    });
  }

  Stage::Pass stage_pass(int k, const Instruction& instruction) const {
    Stage::Pass pass;
    pass.slot = instruction.slot;
    pass.source = instruction.source;
    pass.version_slot = instruction.version_slot;
    pass.microbatch = static_cast<std::uint64_t>(global_microbatch(instruction));
    pass.mode = mode_;
    pass.gradients = instruction.microbatch % schedule_.microbatches_per_update == 0 ? GradientMode::kStore
                                                                                     : GradientMode::kAdd;
    pass.wants_input_gradient = k > 0;
    return pass;
  }

  void issue_forward(int k, const Instruction& instruction) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    const int slot = instruction.slot;
    if (k == 0) load(instruction);
    stream.wait(here.input_ready[slot]);
    stream.wait(here.output_consumed[slot]);
    begin_span(k, kCompute);
    stage(k).forward(stream, stage_pass(k, instruction));
    note_version(k, instruction, 'F');
    if (mode_ == Mode::kEvaluation && last(k)) run_loss(k, instruction);
    end_span(k, kCompute, instruction);
    stream.record(here.output_ready[slot]);
    if (mode_ == Mode::kEvaluation) stream.record(here.slot_free[slot]);
  }

  void issue_backward(int k, const Instruction& instruction, Stage::Part part) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    const int slot = instruction.slot;
    const bool makes_input_gradient = part != Stage::Part::kWeights;
    if (makes_input_gradient) {
      if (!last(k)) stream.wait(here.gradient_ready[slot]);
      stream.wait(here.input_gradient_consumed[slot]);
    }
    begin_span(k, kCompute);
    if (makes_input_gradient && last(k)) run_loss(k, instruction);
    stage(k).backward(stream, stage_pass(k, instruction), part);
    if (makes_input_gradient) note_version(k, instruction, 'B');
    end_span(k, kCompute, instruction);
    if (makes_input_gradient) stream.record(here.input_gradient_ready[slot]);
    if (part != Stage::Part::kInput) stream.record(here.slot_free[slot]);
  }

  // Loss, and in training its gradient, into the slot's output gradient.
  void run_loss(int k, const Instruction& instruction) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    const std::int64_t entry = ring(instruction.microbatch);
    const auto result = static_cast<std::size_t>(issued_results_ % kResultRing);
    if (issued_results_ - taken_results_ == kResultRing) wait_for_result();
    const Shape& shape = stage(k).output_shape();
    float* gradient = mode_ == Mode::kTraining ? stage(k).output_gradient(instruction.slot) : nullptr;
    stream.wait(core_.label_ready[static_cast<std::size_t>(entry)]);
    core_.loss->run({.stream = stream,
                     .logits = ConstTensor(stage(k).output(instruction.slot), shape),
                     .labels = core_.labels.data() + entry * core_.microbatch_records,
                     .logits_gradient = {gradient, shape},
                     .loss_sum = core_.loss_sums.data() + result,
                     .correct = core_.correct.data() + result,
                     .scale = 1.0F / static_cast<float>(core_.minibatch_records),
                     .workspace = core_.loss_workspace.data()});
    stream.record(core_.label_free[static_cast<std::size_t>(entry)]);
    stream.record(core_.result_ready[result]);
    ++issued_results_;
  }

  void issue_weights(int k, const Instruction& instruction) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    begin_span(k, kCompute);
    StageLane* const where = &here;
    switch (instruction.op) {
      case Op::kUpdate:
        stage(k).update(stream, core_.rates[static_cast<std::size_t>(instruction.minibatch)]);
        break;
      case Op::kUpdatePredict:
        stage(k).update_predict(stream, core_.rates[static_cast<std::size_t>(instruction.minibatch)],
                                rates_after(instruction.version, instruction.horizon));
        break;
      case Op::kPredict:
        stage(k).predict(stream, rates_after(instruction.version, instruction.horizon));
        break;
      default:
        stage(k).stash_weights(stream, instruction.version_slot);
        stream.submit([where, slot = instruction.version_slot] {
          where->stashed_version[static_cast<std::size_t>(slot)] = where->version;
        });
    }
    if (instruction.op == Op::kUpdate || instruction.op == Op::kUpdatePredict) {
      stream.submit([where] { ++where->version; });
      note_version(k, instruction, 'U');
    }
    if (instruction.op == Op::kPredict || instruction.op == Op::kUpdatePredict) {
      stream.submit([where, horizon = instruction.horizon] {
        where->predicted_version = where->version;
        where->predicted_horizon = horizon;
      });
    }
    end_span(k, kCompute, instruction);
  }

  LearningRates rates_after(std::int64_t version, int horizon) const {
    return LearningRates(core_.rates)
        .subspan(static_cast<std::size_t>(version), static_cast<std::size_t>(horizon));
  }

  // ---- results ----

  void wait_for_result() {
    core_.result_ready[static_cast<std::size_t>(taken_results_ % kResultRing)].synchronize();
    take_result();
  }

  void take_results(bool all) {
    while (taken_results_ < issued_results_) {
      const auto entry = static_cast<std::size_t>(taken_results_ % kResultRing);
      if (!all && !core_.result_ready[entry].done()) return;
      take_result();
    }
  }

  void take_result() {
    const auto entry = static_cast<std::size_t>(taken_results_ % kResultRing);
    step_loss_ += core_.loss_sums.data()[entry];
    step_correct_ += core_.correct.data()[entry];
    ++taken_results_;
    if (taken_results_ % schedule_.microbatches_per_update != 0) return;
    const std::int64_t t = taken_results_ / schedule_.microbatches_per_update - 1;
    StepResult step;
    step.step = pass_->first_step + t;
    step.loss = step_loss_ / static_cast<double>(core_.minibatch_records);
    step.records = core_.minibatch_records;
    step.correct = step_correct_;
    loss_total_ += step_loss_;
    result_.records += step.records;
    result_.correct += step.correct;
    step_loss_ = 0;
    step_correct_ = 0;
    if (mode_ == Mode::kTraining && !std::isfinite(step.loss)) {
      throw DataError(
          "step " + std::to_string(step.step) + ": the loss is " + std::to_string(step.loss) +
          "; training stops before it spoils more (a lower --lr, --clip-norm or warm-up may help)");
    }
    if (pass_->on_step && !pass_->on_step(step) && minibatch_limit_ > issued_minibatches_) {
      minibatch_limit_ = issued_minibatches_;
    }
  }

  // ---- versions, spans ----

  std::int64_t global_microbatch(const Instruction& instruction) const {
    return pass_->first_step * schedule_.microbatches_per_update + instruction.microbatch;
  }

  void prepare_records() {
    for (int k = 0; k < core_.depth(); ++k) {
      StageLane& here = lane(k);
      const std::size_t instructions = schedule_.stages[static_cast<std::size_t>(k)].size();
      here.busy_us = 0;
      here.started = false;
      here.versions.clear();
      if (pass_->on_version) here.versions.reserve(instructions);
      for (SpanLog& log : here.logs) {
        log.next = 0;
        if (core_.config.trace) log.spans.resize(instructions);
      }
    }
  }

  void note_version(int k, const Instruction& instruction, char op) {
    if (instruction.op == Op::kForward && k == 0) {
      issued_minibatches_ = std::max<std::int64_t>(issued_minibatches_, instruction.minibatch + 1);
    }
    if (!pass_->on_version) return;
    StageLane* const here = &lane(k);
    VersionRecord record{k, pass_->first_step + instruction.minibatch, global_microbatch(instruction), op, 0,
                         0};
    here->streams[kCompute].submit(
        [here, record, source = instruction.source, slot = instruction.version_slot]() mutable {
          record.version = here->version;
          if (record.op != 'U' && source == WeightSource::kVersion) {
            record.version = here->stashed_version[static_cast<std::size_t>(slot)];
          }
          if (record.op != 'U' && source == WeightSource::kPredicted) {
            record.version = here->predicted_version;
            record.horizon = here->predicted_horizon;
          }
          here->versions.push_back(record);  // reserved
        });
  }

  void begin_span(int k, StreamId stream) {
    StageLane* const here = &lane(k);
    here->streams[stream].submit([here, stream] {
      here->logs[stream].begin = PassClock::now();
      if (stream != kCompute) return;
      if (!here->started) here->pass_begin = here->logs[stream].begin;
      here->started = true;
    });
  }

  void end_span(int k, StreamId stream, const Instruction& instruction) {
    StageLane* const here = &lane(k);
    const bool keep = core_.config.trace;
    here->streams[stream].submit(
        [here, stream, keep, op = instruction.op, microbatch = global_microbatch(instruction)] {
          SpanLog& log = here->logs[stream];
          const Span span{op, microbatch, log.begin, PassClock::now()};
          if (stream == kCompute) {
            here->busy_us += microseconds(span.end - span.begin);
            here->pass_end = span.end;
          }
          if (keep) log.spans[log.next++] = span;
        });
  }

  void copy_to_slot(int k, StreamId stream, const Instruction& instruction, float* to, const float* from) {
    const Shape& shape = stream == kActivations ? stage(k).input_shape() : stage(k).output_shape();
    begin_span(k, stream);
    lane(k).streams[stream].copy(to, from, static_cast<std::size_t>(shape.elements()) * sizeof(float));
    end_span(k, stream, instruction);
  }

  void finish_records() {
    PassClock::time_point begin = PassClock::time_point::max();
    PassClock::time_point end = PassClock::time_point::min();
    for (auto& here : core_.lanes) {
      if (!here->started) continue;
      begin = std::min(begin, here->pass_begin);
      end = std::max(end, here->pass_end);
    }
    for (int k = 0; k < core_.depth(); ++k) {
      StageLane& here = lane(k);
      if (mode_ == Mode::kTraining) {
        core_.timing[static_cast<std::size_t>(k)] = {here.busy_us * 1e-6,
                                                     std::chrono::duration<double>(end - begin).count()};
      }
      for (const VersionRecord& record : here.versions) pass_->on_version(record);
      if (core_.config.trace) keep_trace(k, here);
    }
  }

  void keep_trace(int k, const StageLane& here) {
    for (std::size_t stream = 0; stream < here.logs.size(); ++stream) {
      const SpanLog& log = here.logs[stream];
      for (std::size_t i = 0; i < log.next; ++i) {
        const Span& span = log.spans[i];
        TraceSpan out{k,
                      static_cast<int>(stream),
                      {},
                      microseconds(span.begin - core_.epoch),
                      microseconds(span.end - core_.epoch)};
        std::snprintf(out.name, sizeof(out.name), "%s %lld", stream == kCompute ? op_name(span.op) : "copy",
                      static_cast<long long>(span.microbatch));
        core_.trace.push_back(out);
      }
    }
  }

  EngineCore& core_;
  BatchSource& source_;
  const Schedule& schedule_;
  Mode mode_;
  std::vector<IssueStep> steps_;
  const TrainPass* pass_ = nullptr;
  std::vector<std::deque<Transfer>> activations_, gradients_;  // by sending stage
  std::vector<std::atomic<int>> batch_parts_left_;
  Batch batch_;
  std::int64_t minibatch_limit_ = 0;
  std::int64_t issued_minibatches_ = 0;
  std::int64_t issued_results_ = 0;
  std::int64_t taken_results_ = 0;
  double step_loss_ = 0;
  std::int64_t step_correct_ = 0;
  double loss_total_ = 0;
  PassResult result_;
};

}  // namespace

PassResult run_pass(EngineCore& core, BatchSource& source, const Schedule& schedule, Mode mode,
                    const TrainPass& pass) {
  return PassRunner(core, source, schedule, mode).run(pass);
}

}  // namespace pipeoptim
