#include "pipeline/engine.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/error.h"
#include "pipeline/stage.h"

namespace pipeoptim {
namespace {

using Clock = std::chrono::steady_clock;

// Results that may be under way before the oldest is looked at.
constexpr std::int64_t kResultRing = 64;

enum StreamId : std::size_t { kCompute = 0, kActivations = 1, kGradients = 2 };

double microseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

// What a stream's worker writes down about its work; read after the pass.
struct Span {
  Op op;
  std::int64_t microbatch;
  Clock::time_point begin, end;
};
struct SpanLog {
  std::vector<Span> spans;  // sized before the pass where a trace is wanted
  std::size_t next = 0;
  Clock::time_point begin;
};

// What one stage's streams share: events by activation slot, and what the workers write down.
struct StageLane {
  StageLane(Device device, int threads, int index, int slots, HostExecution execution) {
    const std::string name = "stage" + std::to_string(index);
    for (int i = 0; i < slots; ++i) {
      for (auto* events : {&input_ready, &slot_free, &output_ready, &output_consumed, &gradient_ready,
                           &input_gradient_ready, &input_gradient_consumed}) {
        events->emplace_back(device);
      }
    }
    streams.emplace_back(device, StreamOptions{threads, execution, name});
    streams.emplace_back(device, StreamOptions{1, execution, name + "-act"});
    streams.emplace_back(device, StreamOptions{1, execution, name + "-grad"});
  }

  std::vector<Event> input_ready;              // activations stream: the input lies in the slot
  std::vector<Event> slot_free;                // compute: the slot's last user is done
  std::vector<Event> output_ready;             // compute: the output lies in the slot
  std::vector<Event> output_consumed;          // next stage's activations stream: it has its copy
  std::vector<Event> gradient_ready;           // gradients stream: the output gradient lies in the slot
  std::vector<Event> input_gradient_ready;     // compute
  std::vector<Event> input_gradient_consumed;  // previous stage's gradients stream

  // Written by the compute worker in stream order.
  std::int64_t version = 0;  // completed updates since the start of training
  std::int64_t predicted_version = 0;
  int predicted_horizon = 0;
  std::vector<std::int64_t> stashed_version;
  std::vector<VersionRecord> versions;
  double busy_us = 0;  // of the compute stream
  Clock::time_point pass_begin, pass_end;
  bool started = false;
  std::array<SpanLog, 3> logs;  // by stream

  std::vector<Stream> streams;  // last: destroyed first, before what their work refers to
};

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

}  // namespace

struct Engine::Impl {
  EngineConfig config;
  std::unique_ptr<Loss> loss;
  Shape input;  // of a micro-batch
  std::int64_t minibatch_records = 0;
  std::int64_t microbatch_records = 0;
  Schedule schedule;                  // of the last pass
  std::int64_t schedule_length = -1;  // mini-batches it was made for
  std::vector<Stage> stages;
  std::vector<ModelTensor> tensors;
  std::vector<int> version_copies;
  bool allocated = false;
  Clock::time_point epoch = Clock::now();

  // Last stage: labels by a ring that no schedule overruns, loss results by micro-batch.
  Buffer<std::int32_t> labels;
  std::int64_t label_ring = 1;
  Buffer<double> loss_sums;
  Buffer<std::int32_t> correct;
  Memory loss_workspace;
  std::vector<Event> label_ready, label_free, result_ready;
  std::vector<OptimizerStatus> status;
  std::vector<float> rates;  // of the pass's steps and some beyond
  std::vector<TraceSpan> trace;
  std::vector<StageTiming> timing;
  std::vector<std::unique_ptr<StageLane>> lanes;  // after everything that their work refers to

  int depth() const { return static_cast<int>(stages.size()); }
  int micro() const { return config.microbatches_per_update; }
  std::int64_t microbatch_bytes(const Shape& shape) const {
    return shape.elements() * static_cast<std::int64_t>(sizeof(float));
  }

  Impl(EngineConfig engine_config, std::vector<std::vector<NamedLayer>> layers,
       std::unique_ptr<Loss> stage_loss, const Shape& minibatch);
  void allocate();
  void use_schedule(std::int64_t minibatches);
  void drain() noexcept;
  void throw_if_failed();
  int threads_of(int stage) const;
};

Engine::Impl::Impl(EngineConfig engine_config, std::vector<std::vector<NamedLayer>> layers,
                   std::unique_ptr<Loss> stage_loss, const Shape& minibatch)
    : config(std::move(engine_config)),
      loss(std::move(stage_loss)),
      input(minibatch),
      minibatch_records(minibatch[0]) {
  if (layers.empty()) throw std::invalid_argument("a pipeline needs at least one stage");
  if (config.threads < 1)
    throw std::invalid_argument("threads must be at least 1, got " + std::to_string(config.threads));
  if (micro() < 1)
    throw std::invalid_argument("micro-batches must be at least 1, got " + std::to_string(micro()));
  if (minibatch_records % micro() != 0) {
    throw std::invalid_argument("the mini-batch of " + std::to_string(minibatch_records) +
                                " records cannot be divided into " + std::to_string(micro()) +
                                " micro-batches");
  }
  microbatch_records = minibatch_records / micro();
  input[0] = microbatch_records;
  require_usable(config.device);
  make_optimizer(config.device, config.optimizer, {});  // only to refuse bad hyper-parameters before anything runs

  // Slots and copies of the steady state: a pass longer than any warm-up needs no more than this one.
  const int depth = static_cast<int>(layers.size());
  schedule = make_schedule(config.method, {depth, 4 * depth, micro(), config.horizon});
  Shape shape = input;
  std::uint64_t random_layer = 0;
  for (int k = 0; k < depth; ++k) {
    const Program& program = schedule.stages[static_cast<std::size_t>(k)];
    const auto has = [&](auto&& predicate) { return std::any_of(program.begin(), program.end(), predicate); };
    const bool split = has([](const Instruction& i) { return i.op == Op::kBackwardInput; });
    StageOptions options;
    options.device = config.device;
    options.threads = threads_of(k);
    options.index = k;
    options.optimizer = config.optimizer;
    options.split = split ? BackwardSplit::kSplit : BackwardSplit::kJoined;
    options.input = shape;
    options.slots = schedule.slots[static_cast<std::size_t>(k)];
    options.version_slots = schedule.version_slots[static_cast<std::size_t>(k)];
    options.predicts =
        has([](const Instruction& i) { return i.op == Op::kPredict || i.op == Op::kUpdatePredict; });
    options.seed = config.seed;
    options.first_random_layer = random_layer;
    version_copies.push_back(1 + options.version_slots + (options.predicts ? 1 : 0));
    stages.emplace_back(std::move(options), std::move(layers[static_cast<std::size_t>(k)]));
    random_layer += static_cast<std::uint64_t>(stages.back().random_layers());
    shape = stages.back().output_shape();
  }
  for (const Stage& stage : stages) {
    for (const PlacedTensor& placed : stage.parameters()) tensors.push_back(placed.tensor);
    for (const PlacedTensor& placed : stage.states()) tensors.push_back(placed.tensor);
  }
}

// The host's threads are divided over the stages; the first stages get what is left over.
int Engine::Impl::threads_of(int stage) const {
  const int depth = static_cast<int>(schedule.stages.size());
  return std::max(1, config.threads / depth + (stage < config.threads % depth ? 1 : 0));
}

void Engine::Impl::allocate() {
  if (allocated) return;
  for (int k = 0; k < depth(); ++k) {
    const auto index = static_cast<std::size_t>(k);
    stages[index].allocate();
    lanes.push_back(std::make_unique<StageLane>(config.device, threads_of(k), k, schedule.slots[index],
                                                config.execution));
    lanes.back()->stashed_version.resize(static_cast<std::size_t>(schedule.version_slots[index]));
  }
  label_ring = schedule.slots[0] + depth() + 2;
  labels = Buffer<std::int32_t>(config.device, static_cast<std::size_t>(label_ring * microbatch_records));
  for (std::int64_t i = 0; i < label_ring; ++i) {
    label_ready.emplace_back(config.device);
    label_free.emplace_back(config.device);
  }
  for (std::int64_t i = 0; i < kResultRing; ++i) result_ready.emplace_back(config.device);
  loss_sums = Buffer<double>(config.device, kResultRing, MemoryKind::kPinned);
  correct = Buffer<std::int32_t>(config.device, kResultRing, MemoryKind::kPinned);
  loss_workspace = Memory(config.device, loss->workspace_bytes(stages.back().output_shape()));
  status.resize(stages.size());
  timing.resize(stages.size());
  allocated = true;
}

void Engine::Impl::use_schedule(std::int64_t minibatches) {
  if (minibatches == schedule_length) return;
  schedule = make_schedule(config.method, {depth(), static_cast<int>(minibatches), micro(), config.horizon});
  schedule_length = minibatches;
}

void Engine::Impl::drain() noexcept {
  for (auto& lane : lanes) {
    for (Stream& stream : lane->streams) {
      try {
        stream.synchronize();
      } catch (...) {  // NOLINT(bugprone-empty-catch): the first error is already on its way to the caller
      }
    }
  }
}

void Engine::Impl::throw_if_failed() {
  for (auto& lane : lanes) {
    for (Stream& stream : lane->streams) stream.throw_if_failed();
  }
}

namespace {

// Interprets one pass. Lives as long as the pass; everything is stream-ordered, the steady state allocates
// nothing.
template <typename Impl>
class PassRunner {
 public:
  PassRunner(Impl& impl, BatchSource& source, const Schedule& schedule, Mode mode)
      : impl_(impl),
        source_(source),
        schedule_(schedule),
        mode_(mode),
        steps_(mode == Mode::kTraining ? issue_order(schedule) : microbatch_order(schedule)) {
    activations_.resize(impl.stages.size());
    gradients_.resize(impl.stages.size());
    batch_parts_left_ = std::vector<std::atomic<int>>(
        static_cast<std::size_t>(schedule.microbatches / schedule.microbatches_per_update));
    for (auto& parts : batch_parts_left_) parts = schedule.microbatches_per_update;
    minibatch_limit_ = schedule.microbatches / schedule.microbatches_per_update;
  }

  PassResult run(const TrainPass& pass) {
    pass_ = &pass;
    const auto begin = Clock::now();
    prepare_records();
    try {
      for (const IssueStep& step : steps_) {
        const auto& program = schedule_.stages[static_cast<std::size_t>(step.stage)];
        const Instruction& instruction = program[static_cast<std::size_t>(step.index)];
        if (instruction.minibatch >= minibatch_limit_) continue;
        issue(step.stage, instruction);
        if (instruction.op == Op::kForward || instruction.op == Op::kBackward) impl_.throw_if_failed();
        take_results(false);
      }
      for (auto& lane : impl_.lanes) {
        for (Stream& stream : lane->streams) stream.synchronize();
      }
      take_results(true);
    } catch (...) {
      impl_.drain();
      throw;
    }
    result_.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (result_.records > 0) result_.loss = loss_total_ / static_cast<double>(result_.records);
    finish_records();
    return result_;
  }

 private:
  StageLane& lane(int k) { return *impl_.lanes[static_cast<std::size_t>(k)]; }
  Stage& stage(int k) { return impl_.stages[static_cast<std::size_t>(k)]; }
  bool last(int k) const { return k + 1 == impl_.depth(); }
  std::int64_t ring(std::int64_t microbatch) const { return microbatch % impl_.label_ring; }

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
    const std::int64_t records = impl_.microbatch_records;
    stream.wait(here.slot_free[instruction.slot]);
    copy_to_slot(0, kActivations, instruction, stage(0).input(instruction.slot),
                 batch_.inputs + part * impl_.input.elements());
    stream.record(here.input_ready[instruction.slot]);
    stream.wait(impl_.label_free[entry]);
    stream.copy(impl_.labels.data() + entry * records, batch_.labels + part * records,
                static_cast<std::size_t>(records) * sizeof(std::int32_t));
    stream.record(impl_.label_ready[entry]);
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
    stream.wait(impl_.label_ready[static_cast<std::size_t>(entry)]);
    impl_.loss->run({.stream = stream,
                     .logits = ConstTensor(stage(k).output(instruction.slot), shape),
                     .labels = impl_.labels.data() + entry * impl_.microbatch_records,
                     .logits_gradient = {gradient, shape},
                     .loss_sum = impl_.loss_sums.data() + result,
                     .correct = impl_.correct.data() + result,
                     .scale = 1.0F / static_cast<float>(impl_.minibatch_records),
                     .workspace = impl_.loss_workspace.data()});
    stream.record(impl_.label_free[static_cast<std::size_t>(entry)]);
    stream.record(impl_.result_ready[result]);
    ++issued_results_;
  }

  void issue_weights(int k, const Instruction& instruction) {
    StageLane& here = lane(k);
    Stream& stream = here.streams[kCompute];
    begin_span(k, kCompute);
    StageLane* const where = &here;
    switch (instruction.op) {
      case Op::kUpdate:
        stage(k).update(stream, impl_.rates[static_cast<std::size_t>(instruction.minibatch)]);
        break;
      case Op::kUpdatePredict:
        stage(k).update_predict(stream, impl_.rates[static_cast<std::size_t>(instruction.minibatch)],
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
    return LearningRates(impl_.rates)
        .subspan(static_cast<std::size_t>(version), static_cast<std::size_t>(horizon));
  }

  // ---- results ----

  void wait_for_result() {
    impl_.result_ready[static_cast<std::size_t>(taken_results_ % kResultRing)].synchronize();
    take_result();
  }

  void take_results(bool all) {
    while (taken_results_ < issued_results_) {
      const auto entry = static_cast<std::size_t>(taken_results_ % kResultRing);
      if (!all && !impl_.result_ready[entry].done()) return;
      take_result();
    }
  }

  void take_result() {
    const auto entry = static_cast<std::size_t>(taken_results_ % kResultRing);
    step_loss_ += impl_.loss_sums.data()[entry];
    step_correct_ += impl_.correct.data()[entry];
    ++taken_results_;
    if (taken_results_ % schedule_.microbatches_per_update != 0) return;
    const std::int64_t t = taken_results_ / schedule_.microbatches_per_update - 1;
    StepResult step;
    step.step = pass_->first_step + t;
    step.loss = step_loss_ / static_cast<double>(impl_.minibatch_records);
    step.records = impl_.minibatch_records;
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
    for (int k = 0; k < impl_.depth(); ++k) {
      StageLane& here = lane(k);
      const std::size_t instructions = schedule_.stages[static_cast<std::size_t>(k)].size();
      here.busy_us = 0;
      here.started = false;
      here.versions.clear();
      if (pass_->on_version) here.versions.reserve(instructions);
      for (SpanLog& log : here.logs) {
        log.next = 0;
        if (impl_.config.trace) log.spans.resize(instructions);
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
      here->logs[stream].begin = Clock::now();
      if (stream != kCompute) return;
      if (!here->started) here->pass_begin = here->logs[stream].begin;
      here->started = true;
    });
  }

  void end_span(int k, StreamId stream, const Instruction& instruction) {
    StageLane* const here = &lane(k);
    const bool keep = impl_.config.trace;
    here->streams[stream].submit(
        [here, stream, keep, op = instruction.op, microbatch = global_microbatch(instruction)] {
          SpanLog& log = here->logs[stream];
          const Span span{op, microbatch, log.begin, Clock::now()};
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
    Clock::time_point begin = Clock::time_point::max();
    Clock::time_point end = Clock::time_point::min();
    for (auto& here : impl_.lanes) {
      if (!here->started) continue;
      begin = std::min(begin, here->pass_begin);
      end = std::max(end, here->pass_end);
    }
    for (int k = 0; k < impl_.depth(); ++k) {
      StageLane& here = lane(k);
      if (mode_ == Mode::kTraining) {
        impl_.timing[static_cast<std::size_t>(k)] = {here.busy_us * 1e-6,
                                                     std::chrono::duration<double>(end - begin).count()};
      }
      for (const VersionRecord& record : here.versions) pass_->on_version(record);
      if (impl_.config.trace) keep_trace(k, here);
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
                      microseconds(span.begin - impl_.epoch),
                      microseconds(span.end - impl_.epoch)};
        std::snprintf(out.name, sizeof(out.name), "%s %lld", stream == kCompute ? op_name(span.op) : "copy",
                      static_cast<long long>(span.microbatch));
        impl_.trace.push_back(out);
      }
    }
  }

  Impl& impl_;
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

Engine::Engine(EngineConfig config, std::vector<std::vector<NamedLayer>> stages, std::unique_ptr<Loss> loss,
               Shape input)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(stages), std::move(loss), input)) {}
Engine::~Engine() {
  if (impl_) impl_->drain();
}

PassResult Engine::train(BatchSource& source, const TrainPass& pass) {
  if (pass.minibatches < 1) throw std::invalid_argument("a training pass needs at least one mini-batch");
  impl_->allocate();
  impl_->use_schedule(pass.minibatches);
  int farthest = 0;
  for (const Program& program : impl_->schedule.stages) {
    for (const Instruction& instruction : program) farthest = std::max(farthest, instruction.horizon);
  }
  impl_->rates.resize(static_cast<std::size_t>(pass.minibatches + farthest));
  for (std::size_t i = 0; i < impl_->rates.size(); ++i) {
    impl_->rates[i] = pass.learning_rate(pass.first_step + static_cast<std::int64_t>(i));
  }
  PassRunner<Impl> runner(*impl_, source, impl_->schedule, Mode::kTraining);
  const PassResult result = runner.run(pass);
  for (std::size_t k = 0; k < impl_->stages.size(); ++k) {
    Optimizer* optimizer = impl_->stages[k].optimizer();
    Stream& stream = impl_->lanes[k]->streams[kCompute];
    if (optimizer) optimizer->copy_status(stream, &impl_->status[k]);
    stream.synchronize();
  }
  return result;
}

PassResult Engine::evaluate(BatchSource& source, std::int64_t minibatches) {
  impl_->allocate();
  const int micro = impl_->micro();
  Schedule schedule = make_forward_schedule(impl_->depth(), static_cast<int>(minibatches) * micro);
  schedule.microbatches_per_update = micro;
  for (std::size_t k = 0; k < schedule.stages.size(); ++k) {
    for (Instruction& instruction : schedule.stages[k]) {
      instruction.slot = instruction.microbatch % impl_->schedule.slots[k];
      instruction.minibatch = instruction.microbatch / micro;
    }
  }
  PassRunner<Impl> runner(*impl_, source, schedule, Mode::kEvaluation);
  return runner.run({});
}

const std::vector<ModelTensor>& Engine::tensors() const { return impl_->tensors; }

namespace {

struct Place {
  const PlacedTensor* placed = nullptr;
  float* data = nullptr;
};

Place find(std::vector<Stage>& stages, const std::string& name) {
  for (Stage& stage : stages) {
    for (const PlacedTensor& placed : stage.parameters()) {
      if (placed.tensor.name == name) return {&placed, stage.weights() + placed.offset};
    }
    for (const PlacedTensor& placed : stage.states()) {
      if (placed.tensor.name == name) return {&placed, stage.state_values() + placed.offset};
    }
  }
  throw std::invalid_argument("the model has no tensor named '" + name + "'");
}

// Visits a convolution's weight in PyTorch's order [out,in,kh,kw]: visit(index there, index in
// [out,kh,kw,in]).
template <typename Visit>
void visit_channels_last(const Shape& shape, const Visit& visit) {
  const std::int64_t inner = shape[2] * shape[3];
  for (std::int64_t o = 0, i = 0; o < shape[0]; ++o) {
    for (std::int64_t c = 0; c < shape[1]; ++c) {
      for (std::int64_t position = 0; position < inner; ++position, ++i) {
        visit(static_cast<std::size_t>(i), static_cast<std::size_t>((o * inner + position) * shape[1] + c));
      }
    }
  }
}

}  // namespace

std::vector<float> Engine::read_tensor(const std::string& name) const {
  impl_->allocate();
  const Place place = find(impl_->stages, name);
  const Shape& shape = place.placed->tensor.shape;
  std::vector<float> stored(static_cast<std::size_t>(shape.elements()));
  copy_to_host(stored.data(), place.data, stored.size() * sizeof(float), impl_->config.device);
  if (place.placed->storage == Storage::kRowMajor) return stored;
  std::vector<float> values(stored.size());
  visit_channels_last(shape, [&](std::size_t file, std::size_t arena) { values[file] = stored[arena]; });
  return values;
}

void Engine::write_tensor(const std::string& name, std::span<const float> values) {
  impl_->allocate();
  const Place place = find(impl_->stages, name);
  const Shape& shape = place.placed->tensor.shape;
  if (static_cast<std::int64_t>(values.size()) != shape.elements()) {
    throw std::invalid_argument("tensor '" + name + "' of shape " + shape.to_string() + " needs " +
                                std::to_string(shape.elements()) + " values, got " +
                                std::to_string(values.size()));
  }
  std::vector<float> stored(values.begin(), values.end());
  if (place.placed->storage == Storage::kChannelsLast) {
    visit_channels_last(shape, [&](std::size_t file, std::size_t arena) { stored[arena] = values[file]; });
  }
  copy_from_host(place.data, stored.data(), stored.size() * sizeof(float), impl_->config.device);
}

std::vector<StageInfo> Engine::stage_info() const {
  std::vector<StageInfo> infos;
  for (std::size_t k = 0; k < impl_->stages.size(); ++k) {
    const Stage& stage = impl_->stages[k];
    StageInfo info;
    for (const auto& child : stage.layers().children()) {
      std::int64_t count = 0;
      for (const Parameter& parameter : child.layer->parameters()) count += parameter.shape.elements();
      info.layers.push_back({child.name, child.layer->describe(), child.plan.output, count});
      info.parameter_count += count;
    }
    for (const PlacedTensor& placed : stage.parameters()) info.parameters.push_back(placed.tensor.name);
    info.weight_copies = impl_->version_copies[k];
    info.stash_slots = impl_->schedule.slots[k];
    info.memory = stage.memory();
    infos.push_back(std::move(info));
  }
  return infos;
}

std::vector<StageTiming> Engine::stage_timing() const { return impl_->timing; }
std::vector<OptimizerStatus> Engine::optimizer_status() const { return impl_->status; }

std::string Engine::last_skip() const {
  for (std::size_t k = 0; k < impl_->status.size(); ++k) {
    const OptimizerStatus& status = impl_->status[k];
    if (status.skipped == 0 || status.last_bad_range < 0) continue;
    const auto& parameters = impl_->stages[k].parameters();
    return "stage " + std::to_string(k) + ", " +
           parameters.at(static_cast<std::size_t>(status.last_bad_range)).tensor.name;
  }
  return {};
}

std::vector<TraceSpan> Engine::take_trace() { return std::exchange(impl_->trace, {}); }
const Schedule& Engine::last_schedule() const { return impl_->schedule; }

}  // namespace pipeoptim
