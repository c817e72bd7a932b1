#include "pipeline/schedule.h"

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline/generators.h"
#include "pipeline/passes.h"
#include "pipeline/schedule_checks.h"

namespace pipeoptim {

const char* short_name(Op op) {
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

bool splits_backward(const Program& program) {
  return std::any_of(program.begin(), program.end(),
                     [](const Instruction& i) { return i.op == Op::kBackwardInput; });
}

namespace {

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

// What a blocked instruction waits for.
std::string awaited(int k, int worker, const Instruction& instruction) {
  const std::string microbatch = " of micro-batch " + std::to_string(instruction.microbatch);
  switch (instruction.op) {
    case Op::kSendActivation:
      return "room on the edge to stage " + std::to_string(k + 1);
    case Op::kSendGradient:
      return "room on the edge to stage " + std::to_string(k - 1);
    case Op::kReceiveActivation:
      return "the activation" + microbatch + " from stage " + std::to_string(k - 1);
    case Op::kReceiveGradient:
      return "the gradient" + microbatch + " from stage " + std::to_string(k + 1);
    default:
      return "its turn on worker " + std::to_string(worker);
  }
}

// Whose turn it is on each worker; a stage that has its worker to itself always has its turn.
class TurnKeeper {
 public:
  explicit TurnKeeper(const Schedule& schedule)
      : schedule_(schedule),
        next_(schedule.turns.size(), 0),
        busy_(static_cast<std::size_t>(schedule.worker_count())) {}

  void new_unit() { std::fill(busy_.begin(), busy_.end(), false); }
  bool may_compute(int k) const {
    const auto d = static_cast<std::size_t>(schedule_.worker_of(k));
    if (busy_[d]) return false;
    return next_.empty() || (next_[d] < schedule_.turns[d].size() && schedule_.turns[d][next_[d]] == k);
  }
  void compute(int k) {
    const auto d = static_cast<std::size_t>(schedule_.worker_of(k));
    busy_[d] = true;
    if (!next_.empty()) ++next_[d];
  }

 private:
  const Schedule& schedule_;
  std::vector<std::size_t> next_;  // by worker
  std::vector<bool> busy_;         // in this time unit
};

// Runs all programs a time unit at a time: each stage goes on until its worker has done one forward or
// backward, or it waits. Calls visit(stage, index, time unit); throws std::logic_error when nobody can go on.
template <typename Visit>
void run_units(const Schedule& schedule, int capacity, const Visit& visit) {
  const int depth = schedule.depth();
  Edges edges(depth, capacity);
  TurnKeeper turns(schedule);
  std::vector<std::size_t> next(static_cast<std::size_t>(depth), 0);
  const auto program = [&](int k) -> const Program& { return schedule.stages[static_cast<std::size_t>(k)]; };
  for (std::int64_t unit = 0;; ++unit) {
    bool moved = false;
    bool finished = true;
    turns.new_unit();
    for (int k = 0; k < depth; ++k) {
      std::size_t& index = next[static_cast<std::size_t>(k)];
      while (index < program(k).size()) {
        const Instruction& instruction = program(k)[index];
        const bool compute = is_compute(instruction.op);
        if ((compute && !turns.may_compute(k)) || !edges.ready(k, instruction, unit)) break;
        edges.apply(k, instruction, unit);
        visit(k, index, unit);
        if (compute) turns.compute(k);
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
      message += " stage " + std::to_string(k) + ", instruction " + std::to_string(index) + " (" +
                 to_string(program(k)[index]) + ") waits for " +
                 awaited(k, schedule.worker_of(k), program(k)[index]) + ";";
    }
    throw std::logic_error(message);
  }
}

// Every stage has a worker, and every forward and backward its turn on it.
void check_workers(const Schedule& schedule) {
  if (schedule.turns.empty()) return;
  std::vector<std::int64_t> due(schedule.stages.size());
  for (std::size_t k = 0; k < due.size(); ++k) {
    const Program& program = schedule.stages[k];
    due[k] =
        std::count_if(program.begin(), program.end(), [](const Instruction& i) { return is_compute(i.op); });
  }
  bool hold = schedule.workers.size() == due.size();
  for (std::size_t d = 0; hold && d < schedule.turns.size(); ++d) {
    for (const std::int32_t k : schedule.turns[d]) {
      hold = hold && k >= 0 && k < schedule.depth() && schedule.worker_of(k) == static_cast<int>(d);
      if (hold) --due[static_cast<std::size_t>(k)];
    }
  }
  if (!hold || std::any_of(due.begin(), due.end(), [](std::int64_t count) { return count != 0; })) {
    throw std::logic_error(
        "the schedule does not give every forward and backward one turn on its stage's worker");
  }
}

}  // namespace

std::string to_string(const Instruction& instruction) {
  std::string text = std::string(short_name(instruction.op)) + std::to_string(instruction.microbatch);
  if (instruction.horizon != 0)
    text += (instruction.horizon > 0 ? "+" : "") + std::to_string(instruction.horizon);
  return text;
}

void validate(const Schedule& schedule, int channel_capacity) {
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("the schedule ") + what);
  };
  const auto counts = [&](const std::vector<std::int32_t>& list) {
    return list.size() == schedule.stages.size() &&
           std::all_of(list.begin(), list.end(), [](std::int32_t count) { return count >= 0; });
  };
  if (channel_capacity < 1) throw std::invalid_argument("a channel holds at least one tensor");
  require(!schedule.stages.empty(), "has no stages");
  require(counts(schedule.slots) && counts(schedule.version_slots) && counts(schedule.predicted_slots),
          "does not give every stage's slots");
  check_workers(schedule);
  require(schedule.microbatches >= 0 && schedule.microbatches_per_update >= 1 &&
              schedule.microbatches % schedule.microbatches_per_update == 0,
          "is not a whole number of mini-batches");
  run_units(schedule, channel_capacity, [](int, std::size_t, std::int64_t) {});
  for (int k = 0; k < schedule.depth(); ++k) check_stage(schedule, k);
}

Schedule make_schedule(const std::string& method, const ScheduleRequest& request) {
  Schedule schedule = generate_compute(method, request);
  for (int k = 0; k < schedule.depth(); ++k) {
    Program& program = schedule.stages[static_cast<std::size_t>(k)];
    schedule.version_slots.push_back(materialise_versions(program));
    schedule.predicted_slots.push_back(insert_predictions(program));
    schedule.slots.push_back(assign_slots(program));
    insert_transfers(program, k, schedule.depth());
  }
  validate(schedule);
  return schedule;
}

Schedule make_forward_schedule(int stages, int microbatches) {
  if (stages < 1 || microbatches < 0) {
    throw std::invalid_argument("a forward schedule of " + std::to_string(stages) + " stages and " +
                                std::to_string(microbatches) + " micro-batches is not possible");
  }
  Schedule schedule;
  schedule.microbatches = microbatches;
  schedule.stages.resize(static_cast<std::size_t>(stages));
  schedule.slots.assign(static_cast<std::size_t>(stages), 2);  // one is filled while the other is sent
  schedule.version_slots.assign(static_cast<std::size_t>(stages), 0);
  schedule.predicted_slots.assign(static_cast<std::size_t>(stages), 0);
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
  validate(schedule);
  return schedule;
}

bool runs_to_its_end(const Schedule& schedule, int channel_capacity) {
  try {
    run_units(schedule, channel_capacity, [](int, std::size_t, std::int64_t) {});
  } catch (const std::logic_error&) {
    return false;
  }
  return true;
}

std::vector<IssueStep> issue_order(const Schedule& schedule) {
  std::vector<IssueStep> steps;
  // Capacity: issuing a send never blocks, so that only the order of the programs counts.
  run_units(schedule, schedule.microbatches + 1, [&](int k, std::size_t index, std::int64_t) {
    steps.push_back({k, static_cast<std::int32_t>(index)});
  });
  return steps;
}

namespace {

// Which of its worker's stages this is: nothing for the first, then b, c, ...
std::string chunk_letter(const Schedule& schedule, int stage) {
  int earlier = 0;
  for (int k = 0; k < stage; ++k) earlier += schedule.worker_of(k) == schedule.worker_of(stage) ? 1 : 0;
  return earlier == 0 ? "" : std::string(1, static_cast<char>('a' + std::min(earlier, 25)));
}

}  // namespace

std::string draw(const Schedule& schedule, int max_columns) {
  struct Cell {
    std::int64_t unit;
    std::string text;
  };
  std::vector<std::vector<Cell>> rows(static_cast<std::size_t>(schedule.worker_count()));
  std::size_t width = 4;  // of a cell, the gap to the next included
  run_units(schedule, schedule.microbatches + 1, [&](int k, std::size_t index, std::int64_t unit) {
    const Instruction& instruction = schedule.stages[static_cast<std::size_t>(k)][index];
    // A cell takes two columns at least: what begins later cannot be seen.
    if (!is_compute(instruction.op) || 2 * unit > max_columns) return;
    const std::string text =
        short_name(instruction.op) + std::to_string(instruction.microbatch) + chunk_letter(schedule, k);
    width = std::max(width, text.size() + 1);
    rows[static_cast<std::size_t>(schedule.worker_of(k))].push_back({unit, text});
  });
  const auto columns = static_cast<std::size_t>(std::max(max_columns, 24));
  std::string picture;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    std::string line = (schedule.turns.empty() ? "stage " : "worker ") + std::to_string(k) + " | ";
    std::int64_t unit = 0;
    const auto append = [&](std::string text) {
      text.resize(width, ' ');
      line += text;
      ++unit;
    };
    for (const Cell& cell : rows[k]) {
      while (unit < cell.unit) append(".");
      append(cell.text);
    }
    if (line.size() > columns) {
      line.resize(columns - 3);
      line += "...";
    }
    picture += line + "\n";
  }
  const bool split = splits_backward(schedule.stages[0]);
  return picture +
         (split ? "F, BI, BW: forward, input gradient and weight gradient" : "F, B: forward and backward") +
         " of a micro-batch, drawn one time unit each; updates follow\nbackwards; . is idle" +
         (schedule.turns.empty() ? "\n" : "; b, c, ..: of the worker's second stage, third, ..\n");
}

}  // namespace pipeoptim
