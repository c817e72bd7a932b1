#include "pipeline/generators.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline/methods.h"
#include "pipeline/orders.h"

namespace pipeoptim {
namespace {

std::int32_t divide_up(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

void append(Program& program, Op op, std::int32_t microbatch, std::int32_t per_update) {
  Instruction instruction;
  instruction.op = op;
  instruction.microbatch = microbatch;
  instruction.minibatch = microbatch / per_update;
  program.push_back(instruction);
}

// The turns of the workers, `first` micro-batches on, become the stages' programs. The update follows the
// last weight gradient of a mini-batch.
void append_turns(Schedule& schedule, const Turns& turns, std::int32_t first) {
  const std::int32_t m = schedule.microbatches_per_update;
  for (std::size_t d = 0; d < turns.size(); ++d) {
    for (const Turn& turn : turns[d]) {
      const std::int32_t j = first + turn.microbatch;
      Program& program = schedule.stages[static_cast<std::size_t>(turn.stage)];
      append(program, turn.op, j, m);
      const bool whole = turn.op == Op::kBackward || turn.op == Op::kBackwardWeights;
      if (whole && (j + 1) % m == 0) append(program, Op::kUpdate, j, m);
      if (!schedule.turns.empty()) schedule.turns[d].push_back(turn.stage);
    }
  }
}

// Live versions: what the stage's weights are when the instruction runs, counted from the program itself.
void note_live_versions(Program& program) {
  std::int32_t version = 0;
  for (Instruction& instruction : program) {
    if (instruction.op == Op::kUpdate) ++version;
    instruction.version = version;
  }
}

void set_prediction(Instruction& instruction, std::int32_t horizon, std::int32_t slot = 0) {
  instruction.horizon = horizon;
  instruction.source = horizon != 0 ? WeightSource::kPredicted : WeightSource::kLive;
  instruction.predicted_slot = horizon != 0 ? slot : -1;
}

struct StageNumbers {
  std::int32_t stage, depth, per_update;
  std::int32_t
      distance;  // micro-batches between a forward and its backward in steady state: W_k, or the delay
};

// Constant distances are in micro-batches; with m of them to an update they become ceil(distance / m)
// updates.
std::int32_t pipeoptim_horizon(HorizonPolicy policy, const StageNumbers& at, std::int32_t gap) {
  switch (policy) {
    case HorizonPolicy::kExact:
      return gap;
    case HorizonPolicy::kPaper:
      return divide_up(at.distance, at.per_update);
    case HorizonPolicy::kReleasedCode:
      return divide_up(at.distance + 1, at.per_update);
  }
  throw std::logic_error("unknown horizon policy");
}

// The live versions at a stage's forwards and backwards, by micro-batch. A split backward reads its stash in
// the first half.
struct LiveVersions {
  std::vector<std::int32_t> forward, backward;

  explicit LiveVersions(const Program& program) {
    for (const Instruction& i : program) {
      if (i.op == Op::kUpdate || i.op == Op::kBackwardWeights) continue;
      auto& versions = i.op == Op::kForward ? forward : backward;
      const auto j = static_cast<std::size_t>(i.microbatch);
      versions.resize(std::max(versions.size(), j + 1));
      versions[j] = i.version;
    }
  }
  std::int32_t gap(std::size_t microbatch) const { return backward[microbatch] - forward[microbatch]; }
  std::int32_t largest_gap() const {
    std::int32_t largest = 0;
    for (std::size_t j = 0; j < backward.size(); ++j) largest = std::max(largest, gap(j));
    return largest;
  }
};

// Annotates F and B with what the method multiplies by. A version older than the live one is left for the
// version pass to provide.
void apply_policy(Program& program, const LiveVersions& live, WeightPolicy policy, HorizonPolicy horizon,
                  const StageNumbers& at) {
  for (Instruction& i : program) {
    if (i.op == Op::kUpdate) continue;
    const auto j = static_cast<std::size_t>(i.microbatch);
    const bool forward = i.op == Op::kForward;
    const std::int32_t gap = live.gap(j);
    switch (policy) {
      case WeightPolicy::kLive:
        break;
      case WeightPolicy::kSameVersion:
        i.version = live.forward[j];
        break;
      case WeightPolicy::kVerticalSync:
        i.version = std::max(i.microbatch - (at.depth - 1), 0) / at.per_update;
        break;
      case WeightPolicy::kDoubleBuffered:
        i.version = std::max(i.minibatch - 1, 0);
        break;
      case WeightPolicy::kSpecTrain:
        set_prediction(i, divide_up(at.stage / 2 + (forward ? at.distance : 0), at.per_update));
        break;
      case WeightPolicy::kXPipe:
        if (forward) i.version = live.forward[static_cast<std::size_t>(i.minibatch * at.per_update)];
        set_prediction(i, divide_up(at.stage / 2 + (forward ? at.distance : 0), at.per_update),
                       forward ? 0 : 1);
        break;
      case WeightPolicy::kPipeOptim:
        if (forward) set_prediction(i, pipeoptim_horizon(horizon, at, gap));
        break;
      case WeightPolicy::kPaperHorizon:
        if (forward) set_prediction(i, divide_up(at.distance, at.per_update));
        break;
      case WeightPolicy::kPipeMare:
        if (!forward) set_prediction(i, -gap);
        break;
    }
  }
}

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

void check_numbers(const Method& method, const ScheduleRequest& request) {
  const std::int32_t m = request.microbatches_per_update;
  const std::string name = method.name;
  require(request.workers >= 1, "stages must be at least 1, got " + std::to_string(request.workers));
  require(request.minibatches >= 1,
          "mini-batches must be at least 1, got " + std::to_string(request.minibatches));
  require(m >= 1, "micro-batches must be at least 1, got " + std::to_string(m));
  require(m <= std::numeric_limits<std::int32_t>::max() / request.minibatches - request.workers,
          std::to_string(request.minibatches) + " mini-batches of " + std::to_string(m) +
              " micro-batches are too many for one schedule");
  require(method.weights != WeightPolicy::kDoubleBuffered || m >= request.workers - 1,
          name + " needs at least D-1 = " + std::to_string(request.workers - 1) +
              " micro-batches per mini-batch, got " + std::to_string(m));
  require(method.order != ComputeOrder::kDelayed || request.workers == 1,
          name + " runs on one stage, not on " + std::to_string(request.workers));
  require(request.delay >= 0, "the delay must be 0 or more, got " + std::to_string(request.delay));
  require(request.delay <= std::numeric_limits<std::int32_t>::max() / m - request.minibatches,
          "a delay of " + std::to_string(request.delay) + " is too long");
  require(method.order == ComputeOrder::kDelayed || request.delay == 0,
          name + " takes no delay; 'delayed' does");
  require(request.activation_limit >= 0,
          "the limit of activations must be 0 or more, got " + std::to_string(request.activation_limit));
  const ComputeCosts& costs = request.costs;
  require(costs.forward > 0 && costs.backward_input > 0 && costs.backward_weights > 0,
          "the costs of forward and backward must be positive");
  require(method.weights != WeightPolicy::kPipeOptim || request.horizon == HorizonPolicy::kExact ||
              chunks_of(method, request.chunks) == 1,
          "with several stages on a worker only the exact horizon is defined");
}

}  // namespace

Schedule generate_compute(const std::string& name, const ScheduleRequest& request) {
  const Method& method = find_method(name);
  check_numbers(method, request);
  const std::int32_t chunks = chunks_of(method, request.chunks);
  const std::int32_t m = request.microbatches_per_update;
  const std::int32_t depth = request.workers * chunks;

  Schedule schedule;
  schedule.stages.resize(static_cast<std::size_t>(depth));
  schedule.microbatches = request.minibatches * m;
  schedule.microbatches_per_update = m;
  if (chunks > 1) {
    schedule.turns.resize(static_cast<std::size_t>(request.workers));
    schedule.workers.resize(schedule.stages.size());
    for (std::int32_t d = 0; d < request.workers; ++d) {
      for (std::int32_t c = 0; c < chunks; ++c) {
        schedule.workers[static_cast<std::size_t>(stage_of(method.order, request.workers, d, c))] = d;
      }
    }
  }
  // An asynchronous order fills and empties the pipeline once, a synchronous one for every mini-batch.
  const bool once = is_asynchronous(method.order);
  const Turns turns = make_turns({.order = method.order,
                                  .workers = request.workers,
                                  .chunks = chunks,
                                  .count = once ? schedule.microbatches : m,
                                  .delay = request.delay * m,
                                  .costs = request.costs,
                                  .activation_limit = request.activation_limit});
  for (std::int32_t t = 0; t < (once ? 1 : request.minibatches); ++t) append_turns(schedule, turns, t * m);
  for (std::int32_t k = 0; k < depth; ++k) {
    Program& program = schedule.stages[static_cast<std::size_t>(k)];
    const std::int32_t distance = method.order == ComputeOrder::kDelayed ? request.delay * m : depth - 1 - k;
    note_live_versions(program);
    const LiveVersions live(program);
    schedule.gaps.push_back(live.largest_gap());
    apply_policy(program, live, method.weights, request.horizon, {k, depth, m, distance});
  }
  return schedule;
}

}  // namespace pipeoptim
