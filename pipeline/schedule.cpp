#include "pipeline/schedule.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline/generators.h"
#include "pipeline/passes.h"

namespace pipeoptim {
namespace {

const char* op_text(Op op) {
  switch (op) {
    case Op::kForward:
      return "F";
    case Op::kBackward:
      return "B";
    case Op::kBackwardInput:
      return "BI";
    case Op::kBackwardWeights:
      return "BW";
    case Op::kUpdate:
      return "U";
    case Op::kPredict:
      return "P";
    case Op::kUpdatePredict:
      return "UP";
    case Op::kStashWeights:
      return "stash";
    case Op::kSendActivation:
      return "send-activation";
    case Op::kReceiveActivation:
      return "receive-activation";
    case Op::kSendGradient:
      return "send-gradient";
    case Op::kReceiveGradient:
      return "receive-gradient";
  }
  return "?";
}

// The edges of a pipeline as bounded FIFO queues of micro-batches. What is sent in a time unit arrives in the
// next.
class Edges {
 public:
  Edges(int depth, int capacity)
      : activations_(static_cast<std::size_t>(depth)),
        gradients_(static_cast<std::size_t>(depth)),
        capacity_(static_cast<std::size_t>(capacity)) {}

  // Whether the stage can run its next instruction in this time unit.
  bool ready(int k, const Instruction& instruction, std::int64_t unit) const {
    switch (instruction.op) {
      case Op::kSendActivation:
        return activations_[at(k)].size() < capacity_;
      case Op::kSendGradient:
        return gradients_[at(k)].size() < capacity_;
      case Op::kReceiveActivation:
        return k > 0 && arrived(activations_[at(k - 1)], unit);
      case Op::kReceiveGradient:
        return at(k + 1) < gradients_.size() && arrived(gradients_[at(k + 1)], unit);
      default:
        return true;
    }
  }
  void apply(int k, const Instruction& instruction, std::int64_t unit) {
    switch (instruction.op) {
      case Op::kSendActivation:
        return activations_[at(k)].push_back({instruction.microbatch, unit});
      case Op::kSendGradient:
        return gradients_[at(k)].push_back({instruction.microbatch, unit});
      case Op::kReceiveActivation:
        return pop(activations_[at(k - 1)], k, instruction);
      case Op::kReceiveGradient:
        return pop(gradients_[at(k + 1)], k, instruction);
      default:
        return;
    }
  }

 private:
  struct Sent {
    std::int32_t microbatch;
    std::int64_t unit;
  };
  using Queue = std::deque<Sent>;

  static std::size_t at(int k) { return static_cast<std::size_t>(k); }
  static bool arrived(const Queue& queue, std::int64_t unit) {
    return !queue.empty() && queue.front().unit < unit;
  }
  static void pop(Queue& queue, int k, const Instruction& instruction) {
    if (queue.front().microbatch != instruction.microbatch) {
      throw std::logic_error("stage " + std::to_string(k) + ": " + to_string(instruction) +
                             " would receive micro-batch " + std::to_string(queue.front().microbatch));
    }
    queue.pop_front();
  }
  std::vector<Queue> activations_, gradients_;  // by sending stage
  std::size_t capacity_;
};

// Runs all programs a time unit at a time: each stage goes on until it has done one forward or backward, or
// waits. Calls visit(stage, index, time unit); throws std::logic_error when nobody can go on.
template <typename Visit>
void simulate(const Schedule& schedule, int capacity, const Visit& visit) {
  const int depth = schedule.depth();
  Edges edges(depth, capacity);
  std::vector<std::size_t> next(static_cast<std::size_t>(depth), 0);
  const auto program = [&](int k) -> const Program& { return schedule.stages[static_cast<std::size_t>(k)]; };
  for (std::int64_t unit = 0;; ++unit) {
    bool moved = false;
    bool finished = true;
    for (int k = 0; k < depth; ++k) {
      std::size_t& index = next[static_cast<std::size_t>(k)];
      bool computed = false;
      while (index < program(k).size()) {
        const Instruction& instruction = program(k)[index];
        const bool compute = instruction.op == Op::kForward || instruction.op == Op::kBackward ||
                             instruction.op == Op::kBackwardInput || instruction.op == Op::kBackwardWeights;
        if ((compute && computed) || !edges.ready(k, instruction, unit)) break;
        edges.apply(k, instruction, unit);
        visit(k, index, unit);
        computed = computed || compute;
        moved = true;
        ++index;
      }
      finished = finished && index == program(k).size();
    }
    if (finished) return;
    if (moved) continue;
    std::string message = "the schedule deadlocks:";
    for (int k = 0; k < depth; ++k) {
      const std::size_t index = next[static_cast<std::size_t>(k)];
      if (index == program(k).size()) continue;
      message += " stage " + std::to_string(k) + " waits in " + to_string(program(k)[index]) +
                 " (instruction " + std::to_string(index) + ");";
    }
    throw std::logic_error(message);
  }
}

// Checks one stage's program by running its bookkeeping: versions, predictions, slots.
class StageChecker {
 public:
  StageChecker(const Schedule& schedule, int stage)
      : schedule_(schedule),
        stage_(stage),
        slot_holds_(static_cast<std::size_t>(schedule.slots[static_cast<std::size_t>(stage)]), -1),
        version_holds_(static_cast<std::size_t>(schedule.version_slots[static_cast<std::size_t>(stage)]), -1),
        forwards_(static_cast<std::size_t>(schedule.microbatches), 0),
        backwards_(forwards_),
        weight_backwards_(forwards_) {}

  void run() {
    for (const Instruction& instruction : schedule_.stages[static_cast<std::size_t>(stage_)])
      check(instruction);
    for (std::int32_t j = 0; j < schedule_.microbatches; ++j) {
      const auto at = static_cast<std::size_t>(j);
      if (forwards_[at] != 1 || backwards_[at] != 1 || weight_backwards_[at] != 1) {
        throw std::logic_error("stage " + std::to_string(stage_) + ": micro-batch " + std::to_string(j) +
                               " does not have exactly one forward and one whole backward");
      }
    }
    if (live_ != schedule_.microbatches / schedule_.microbatches_per_update) {
      throw std::logic_error("stage " + std::to_string(stage_) + ": " + std::to_string(live_) +
                             " updates for " + std::to_string(schedule_.microbatches) + " micro-batches");
    }
  }

 private:
  void require(bool holds, const Instruction& instruction, const char* what) const {
    if (holds) return;
    throw std::logic_error("stage " + std::to_string(stage_) + ": " + to_string(instruction) + ": " + what);
  }

  void check(const Instruction& i) {
    switch (i.op) {
      case Op::kForward:
      case Op::kBackward:
      case Op::kBackwardInput:
      case Op::kBackwardWeights:
        return check_compute(i);
      case Op::kUpdate:
      case Op::kUpdatePredict:
        require(i.version == ++live_, i, "the version it makes is not the next one");
        if (i.op == Op::kUpdatePredict) hold_prediction(i);
        return;
      case Op::kPredict:
        require(i.version == live_, i, "predicts from a version that is not live");
        return hold_prediction(i);
      case Op::kStashWeights:
        require(i.version == live_, i, "stashes a version that is not live");
        require(in_range(i.version_slot, version_holds_), i, "version slot out of range");
        version_holds_[static_cast<std::size_t>(i.version_slot)] = i.version;
        return;
      default:
        return;
    }
  }

  void check_compute(const Instruction& i) {
    require(i.microbatch >= 0 && i.microbatch < schedule_.microbatches, i, "micro-batch out of range");
    require(in_range(i.slot, slot_holds_), i, "activation slot out of range");
    check_weights(i);
    std::int32_t& holder = slot_holds_[static_cast<std::size_t>(i.slot)];
    const auto j = static_cast<std::size_t>(i.microbatch);
    if (i.op == Op::kForward) {
      require(holder == -1, i, "its activation slot is still in use");
      holder = i.microbatch;
      ++forwards_[j];
      return;
    }
    require(holder == i.microbatch, i, "its activation slot holds another micro-batch");
    if (i.op != Op::kBackwardWeights) ++backwards_[j];
    if (i.op == Op::kBackwardInput) return;
    require(backwards_[j] == 1, i, "the weight gradient comes before the input gradient");
    ++weight_backwards_[j];
    holder = -1;
  }

  void check_weights(const Instruction& i) const {
    switch (i.source) {
      case WeightSource::kLive:
        return require(i.version == live_, i, "reads the live weights, but they are another version");
      case WeightSource::kPredicted:
        require(predicted_version_ == i.version && predicted_horizon_ == i.horizon, i,
                "the predicted copy holds another version or horizon");
        return require(i.horizon > 0, i, "a prediction needs a positive horizon");
      case WeightSource::kVersion:
        require(in_range(i.version_slot, version_holds_), i, "version slot out of range");
        return require(version_holds_[static_cast<std::size_t>(i.version_slot)] == i.version, i,
                       "its version slot holds another version");
    }
  }

  void hold_prediction(const Instruction& i) {
    predicted_version_ = live_;
    predicted_horizon_ = i.horizon;
  }
  static bool in_range(std::int32_t index, const std::vector<std::int32_t>& list) {
    return index >= 0 && static_cast<std::size_t>(index) < list.size();
  }

  const Schedule& schedule_;
  int stage_;
  std::int32_t live_ = 0;
  std::int32_t predicted_version_ = -1;
  std::int32_t predicted_horizon_ = -1;
  std::vector<std::int32_t> slot_holds_, version_holds_;
  std::vector<std::int32_t> forwards_, backwards_, weight_backwards_;
};

}  // namespace

std::string to_string(const Instruction& instruction) {
  std::string text = std::string(op_text(instruction.op)) + std::to_string(instruction.microbatch);
  if (instruction.horizon > 0) text += "+" + std::to_string(instruction.horizon);
  return text;
}

void validate(const Schedule& schedule, int channel_capacity) {
  simulate(schedule, channel_capacity, [](int, std::size_t, std::int64_t) {});
  for (int k = 0; k < schedule.depth(); ++k) StageChecker(schedule, k).run();
}

Schedule make_schedule(const std::string& method, const ScheduleRequest& request) {
  Schedule schedule = generate_compute(method, request);
  for (int k = 0; k < schedule.depth(); ++k) {
    Program& program = schedule.stages[static_cast<std::size_t>(k)];
    schedule.version_slots.push_back(materialise_versions(program));
    insert_predictions(program);
    schedule.slots.push_back(assign_slots(program));
    insert_transfers(program, k, schedule.depth());
  }
  validate(schedule);
  return schedule;
}

Schedule make_forward_schedule(int stages, int microbatches) {
  Schedule schedule;
  schedule.microbatches = microbatches;
  schedule.stages.resize(static_cast<std::size_t>(stages));
  schedule.slots.assign(static_cast<std::size_t>(stages), 2);
  schedule.version_slots.assign(static_cast<std::size_t>(stages), 0);
  for (int k = 0; k < stages; ++k) {
    Program& program = schedule.stages[static_cast<std::size_t>(k)];
    for (std::int32_t j = 0; j < microbatches; ++j) {
      Instruction forward;
      forward.microbatch = forward.minibatch = j;
      forward.slot = j % 2;
      program.push_back(forward);
    }
    insert_transfers(program, k, stages);
  }
  return schedule;
}

std::vector<IssueStep> issue_order(const Schedule& schedule) {
  std::vector<IssueStep> steps;
  // Capacity: issuing a send never blocks, so that only the order of the programs counts.
  simulate(schedule, schedule.microbatches + 1, [&](int k, std::size_t index, std::int64_t) {
    steps.push_back({k, static_cast<std::int32_t>(index)});
  });
  return steps;
}

std::string draw(const Schedule& schedule, int max_columns) {
  constexpr int kCell = 4;
  std::vector<std::string> rows(static_cast<std::size_t>(schedule.depth()));
  simulate(schedule, schedule.microbatches + 1, [&](int k, std::size_t index, std::int64_t unit) {
    const Instruction& instruction = schedule.stages[static_cast<std::size_t>(k)][index];
    if (instruction.op != Op::kForward && instruction.op != Op::kBackward &&
        instruction.op != Op::kBackwardInput && instruction.op != Op::kBackwardWeights) {
      return;
    }
    std::string& row = rows[static_cast<std::size_t>(k)];
    const auto begin = static_cast<std::size_t>(unit) * kCell;
    while (row.size() < begin) row += (row.size() % kCell == 0 ? '.' : ' ');
    std::string cell = op_text(instruction.op) + std::to_string(instruction.microbatch);
    cell.resize(std::max<std::size_t>(cell.size(), kCell), ' ');
    row += cell;
  });
  std::string text;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    std::string line = "stage " + std::to_string(k) + " | " + rows[k];
    if (line.size() > static_cast<std::size_t>(max_columns)) {
      line.resize(static_cast<std::size_t>(max_columns) - 3);
      line += "...";
    }
    text += line + "\n";
  }
  text +=
      "F, B: forward and backward of a micro-batch, drawn one time unit each; updates follow backwards; . is "
      "idle\n";
  return text;
}

}  // namespace pipeoptim
