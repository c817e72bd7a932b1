// Interprets one pass of a schedule: each instruction becomes stream-ordered work.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/runtime/range.h"
#include "pipeline/edge.h"
#include "pipeline/engine_core.h"
#include "pipeline/loss_runner.h"
#include "pipeline/pass_recorder.h"

namespace pipeoptim {
namespace {

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

// Interprets one pass. Lives as long as the pass; everything is stream-ordered, the steady state allocates
// nothing.
class PassRunner {
 public:
  PassRunner(EngineCore& core, BatchSource& source, const Schedule& schedule, Mode mode,
             const TrainPass& pass)
      : core_(core),
        source_(source),
        schedule_(schedule),
        mode_(mode),
        pass_(pass),
        recorder_(core, schedule, pass),
        losses_(core, schedule, mode, pass),
        steps_(mode == Mode::kTraining ? issue_order(schedule) : microbatch_order(schedule)) {
    for (auto* edges : {&core.activation_edges, &core.gradient_edges}) {
      for (auto& edge : *edges) {
        if (edge) edge->begin_pass(schedule.microbatches);
      }
    }
    batch_parts_left_ = std::vector<std::atomic<int>>(
        static_cast<std::size_t>(schedule.microbatches / schedule.microbatches_per_update));
    for (auto& parts : batch_parts_left_) parts = schedule.microbatches_per_update;
    minibatch_limit_ = schedule.microbatches / schedule.microbatches_per_update;
  }

  PassResult run() {
    const auto begin = PassClock::now();
    try {
      restart_turns();
      for (const IssueStep& step : steps_) {
        const auto& program = schedule_.stages[static_cast<std::size_t>(step.stage)];
        const Instruction& instruction = program[static_cast<std::size_t>(step.index)];
        if (!core_.here(step.stage) || !admits(step.stage, instruction)) continue;
        issue(step.stage, instruction);
        if (instruction.op == Op::kForward || instruction.op == Op::kBackward) core_.throw_if_failed();
        if (losses_.take_results()) stop();
      }
      core_.synchronize();
      if (losses_.take_all_results()) stop();
    } catch (const std::exception& error) {
      give_up(error.what());
      throw;
    } catch (...) {
      give_up("an unknown error");
      throw;
    }
    PassResult result;
    result.minibatches = minibatch_limit_;
    result.stopped = minibatch_limit_ < schedule_.microbatches / schedule_.microbatches_per_update;
    result.seconds = std::chrono::duration<double>(PassClock::now() - begin).count();
    losses_.add_totals(result);
    recorder_.finish(mode_);
    return result;
  }

 private:
  // What host and graphs count together, whatever became of the pass before.
  void restart_turns() {
    if (!core_.uses_graphs(mode_)) return;
    for (int k = core_.first_here; k < core_.end_here; ++k) lane(k).rates->restart(lane(k).streams[kCompute]);
    if (core_.last_is_here()) core_.repeated_loss->restart(lane(core_.depth() - 1).streams[kCompute]);
  }

  void give_up(const char* reason) noexcept {
    core_.abandon(reason);
    core_.drain();
  }

  StageLane& lane(int k) { return *core_.lanes[static_cast<std::size_t>(k)]; }
  Stage& stage(int k) { return core_.stages[static_cast<std::size_t>(k)]; }
  static Edge& edge_from(const std::vector<std::unique_ptr<Edge>>& edges, int k) {
    return *edges[static_cast<std::size_t>(k)];
  }
  bool last(int k) const { return k + 1 == core_.depth(); }

  // Mini-batches from the limit on are left out. This process begins one with the first instruction that
  // reaches beyond it, which is where several processes agree on their limit.
  bool admits(int k, const Instruction& instruction) {
    if (instruction.minibatch >= minibatch_limit_) return false;
    const bool begins = instruction.op == Op::kForward || instruction.op == Op::kReceiveActivation;
    if (!begins || k != core_.first_here || instruction.minibatch < issued_minibatches_) return true;
    ProcessGroup* processes = core_.config.processes;
    if (processes != nullptr && mode_ == Mode::kTraining &&
        !processes->admit(pass_.first_step + instruction.minibatch, [this] { core_.throw_if_failed(); })) {
      minibatch_limit_ = instruction.minibatch;
      return false;
    }
    issued_minibatches_ = instruction.minibatch + 1;
    return true;
  }

  void issue(int k, const Instruction& instruction) {
    const ProfilerRange range(short_name(instruction.op), k, recorder_.global_microbatch(instruction));
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
        return edge_from(core_.activation_edges, k).send(instruction);
      case Op::kReceiveActivation:
        return edge_from(core_.activation_edges, k - 1).receive(instruction, recorder_);
      case Op::kSendGradient:
        return edge_from(core_.gradient_edges, k).send(instruction);
      case Op::kReceiveGradient:
        return edge_from(core_.gradient_edges, k + 1).receive(instruction, recorder_);
    }
  }

  // The input and the labels of a micro-batch, from the source's memory to the first and the last stage; in
  // one go where both are here.
  void load(int k, const Instruction& instruction) {
    const int part = instruction.microbatch % schedule_.microbatches_per_update;
    if (part == 0) {
      while (!source_.wait(instruction.minibatch, std::chrono::milliseconds(50))) core_.throw_if_failed();
      batch_ = source_.acquire(instruction.minibatch);
    }
    if (k == 0) load_inputs(instruction, part);
    if (core_.last_is_here()) load_labels(k, instruction, part);
    std::atomic<int>* left = &batch_parts_left_[static_cast<std::size_t>(instruction.minibatch)];
    BatchSource* source = &source_;
    lane(k).streams[kActivations].submit([left, source, t = instruction.minibatch] {
      if (left->fetch_sub(1) == 1) source->release(t);
    });
  }

  void load_inputs(const Instruction& instruction, int part) {
    StageLane& here = lane(0);
    Stream& stream = here.streams[kActivations];
    stream.wait(here.slot_free[instruction.slot]);
    recorder_.begin_span(0, kActivations, instruction);
    const Tensor input = stage(0).input(instruction.slot);
    stream.copy(input.data, batch_.inputs + part * input.elements(), input.bytes());
    recorder_.end_span(0, kActivations);
    stream.record(here.input_ready[instruction.slot]);
  }

  void load_labels(int k, const Instruction& instruction, int part) {
    Stream& stream = lane(k).streams[kActivations];
    const std::int64_t entry = core_.label_entry(instruction);
    const std::int64_t labels = core_.microbatch_labels();
    stream.wait(core_.label_free[entry]);
    stream.copy(core_.labels.data() + entry * labels, batch_.labels + part * labels,
                static_cast<std::size_t>(labels) * sizeof(std::int32_t));
    stream.record(core_.label_ready[entry]);
  }

  Stage::Pass stage_pass(int k, const Instruction& instruction) const {
    Stage::Pass pass;
    pass.slot = instruction.slot;
    pass.source = instruction.source;
    pass.version_slot = instruction.version_slot;
    pass.predicted_slot = instruction.predicted_slot;
    pass.microbatch = static_cast<std::uint64_t>(recorder_.global_microbatch(instruction));
    pass.mode = mode_;
    pass.gradients = instruction.microbatch % schedule_.microbatches_per_update == 0 ? GradientMode::kStore
                                                                                     : GradientMode::kAdd;
    pass.wants_input_gradient = k > 0;
    return pass;
  }

  // The stage's layers, as a graph where that is asked for and possible.
  template <typename Issue>
  void run_layers(int k, const Instruction& instruction, const Stage::Pass& pass, const Issue& issue) {
    if (!core_.uses_graphs(mode_) || !stage(k).repeats()) return issue();
    lane(k).graphs.run(lane(k).streams[kCompute],
                       {.op = instruction.op,
                        .slot = pass.slot,
                        .source = pass.source,
                        .version_slot = pass.version_slot,
                        .predicted_slot = pass.predicted_slot,
                        .gradients = pass.gradients},
                       issue);
  }

  void issue_forward(int k, const Instruction& instruction) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    const int slot = instruction.slot;
    if (k == 0 || (last(k) && !core_.here(0))) load(k, instruction);
    stream.wait(here.input_ready[slot]);
    stream.wait(here.output_consumed[slot]);
    recorder_.begin_span(k, kCompute, instruction);
    const Stage::Pass pass = stage_pass(k, instruction);
    run_layers(k, instruction, pass, [&] { stage(k).forward(stream, pass); });
    if (mode_ == Mode::kEvaluation && last(k)) {
      losses_.run(losses_.begin(instruction));
      losses_.end(instruction);
    }
    recorder_.end_span(k, kCompute);
    recorder_.note_pass(k, instruction, 'F');
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
    recorder_.begin_span(k, kCompute, instruction);
    std::optional<LossContext> loss;
    if (makes_input_gradient && last(k)) loss.emplace(losses_.begin(instruction));
    const Stage::Pass pass = stage_pass(k, instruction);
    run_layers(k, instruction, pass, [&] {
      if (loss) losses_.run(*loss);
      stage(k).backward(stream, pass, part);
    });
    if (loss) losses_.end(instruction);
    recorder_.end_span(k, kCompute);
    if (makes_input_gradient) recorder_.note_pass(k, instruction, 'B');
    if (makes_input_gradient) stream.record(here.input_gradient_ready[slot]);
    if (part != Stage::Part::kInput) stream.record(here.slot_free[slot]);
  }

  void issue_weights(int k, const Instruction& instruction) {
    recorder_.begin_span(k, kCompute, instruction);
    if (!core_.uses_graphs(mode_)) {
      launch_weights(k, instruction);
    } else if (stage(k).optimizer() != nullptr) {
      repeat_weights(k, instruction);
    }
    recorder_.end_span(k, kCompute);
    recorder_.note_weights(k, instruction);
  }

  void launch_weights(int k, const Instruction& instruction) {
    Stream& stream = lane(k).streams[kCompute];
    switch (instruction.op) {
      case Op::kUpdate:
        return stage(k).update(stream, rate(k, instruction));
      case Op::kUpdatePredict:
        return stage(k).update_predict(stream, rate(k, instruction), instruction.predicted_slot,
                                       lookahead(k, instruction));
      case Op::kPredict:
        return stage(k).predict(stream, instruction.predicted_slot, lookahead(k, instruction));
      default:
        return stage(k).stash_weights(stream, instruction.version_slot);
    }
  }

  // As a graph, which takes the learning rates from memory.
  void repeat_weights(int k, const Instruction& instruction) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    const GraphCache::Key key{.op = instruction.op,
                              .version_slot = instruction.version_slot,
                              .predicted_slot = instruction.predicted_slot,
                              .horizon = instruction.horizon};
    if (instruction.op == Op::kStashWeights) {
      return here.graphs.run(stream, key, [&] { stage(k).stash_weights(stream, instruction.version_slot); });
    }
    const Lookahead ahead = instruction.op == Op::kUpdate ? Lookahead{} : lookahead(k, instruction);
    const float lr = instruction.op == Op::kPredict ? 0 : rate(k, instruction);
    here.rates->post(stream, stage(k).step_rates(lr, ahead));
    here.graphs.run(stream, key, [&] {
      here.rates->take(stream);
      stage(k).repeat(stream,
                      {instruction.op, instruction.predicted_slot, ahead.distance, here.rates->now()});
    });
  }

  float rate(int k, const Instruction& instruction) const {
    return core_.rates[static_cast<std::size_t>(k)][static_cast<std::size_t>(instruction.minibatch)];
  }
  // Backwards there are no rates to come; without a predictor the distance does not matter.
  Lookahead lookahead(int k, const Instruction& instruction) const {
    if (core_.config.optimizer.predictor == Predictor::kNone) return Lookahead::by_steps(1);
    if (instruction.horizon < 0) return Lookahead::by_steps(instruction.horizon);
    return LearningRates(core_.rates[static_cast<std::size_t>(k)])
        .subspan(static_cast<std::size_t>(instruction.version),
                 static_cast<std::size_t>(instruction.horizon));
  }

  // After what is in flight; several processes first agree on what that is.
  void stop() {
    if (core_.config.processes != nullptr) return core_.config.processes->request_stop();
    minibatch_limit_ = std::min(minibatch_limit_, issued_minibatches_);
  }

  EngineCore& core_;
  BatchSource& source_;
  const Schedule& schedule_;
  Mode mode_;
  const TrainPass& pass_;
  PassRecorder recorder_;
  LossRunner losses_;
  std::vector<IssueStep> steps_;
  std::vector<std::atomic<int>> batch_parts_left_;
  Batch batch_;
  std::int64_t minibatch_limit_ = 0;
  std::int64_t issued_minibatches_ = 0;
};

}  // namespace

PassResult run_pass(EngineCore& core, BatchSource& source, const Schedule& schedule, Mode mode,
                    const TrainPass& pass) {
  return PassRunner(core, source, schedule, mode, pass).run();
}

}  // namespace pipeoptim
