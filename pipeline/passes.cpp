#include "pipeline/passes.h"

#include <unordered_map>
#include <utility>
#include <vector>

namespace pipeoptim {
namespace {

// Hands out the lowest free number.
class SlotPool {
 public:
  std::int32_t take() {
    for (std::size_t i = 0; i < used_.size(); ++i) {
      if (!used_[i]) {
        used_[i] = true;
        return static_cast<std::int32_t>(i);
      }
    }
    used_.push_back(true);
    return static_cast<std::int32_t>(used_.size()) - 1;
  }
  void give(std::int32_t slot) { used_[static_cast<std::size_t>(slot)] = false; }
  std::int32_t size() const { return static_cast<std::int32_t>(used_.size()); }

 private:
  std::vector<bool> used_;
};

Instruction like(const Instruction& model, Op op) {
  Instruction instruction = model;
  instruction.op = op;
  return instruction;
}

}  // namespace

std::int32_t materialise_versions(Program& program) {
  // The last reader of every version that is no longer live when it is read.
  std::unordered_map<std::int32_t, std::size_t> last_reader;
  std::int32_t live = 0;
  for (std::size_t i = 0; i < program.size(); ++i) {
    const Instruction& instruction = program[i];
    if (instruction.op == Op::kUpdate) ++live;
    const bool reads_old = is_compute(instruction.op) && instruction.source != WeightSource::kPredicted &&
                           instruction.version < live;
    if (reads_old) last_reader[instruction.version] = i;
  }
  if (last_reader.empty()) return 0;

  SlotPool pool;
  std::unordered_map<std::int32_t, std::int32_t> slot_of;
  Program out;
  out.reserve(program.size() + last_reader.size());
  live = 0;
  for (std::size_t i = 0; i < program.size(); ++i) {
    Instruction instruction = program[i];
    if (instruction.op == Op::kUpdate) {
      if (last_reader.contains(live)) {
        Instruction stash = like(instruction, Op::kStashWeights);
        stash.version = live;
        stash.version_slot = slot_of[live] = pool.take();
        out.push_back(stash);
      }
      ++live;
    } else if (is_compute(instruction.op) && instruction.source != WeightSource::kPredicted &&
               instruction.version < live) {
      instruction.source = WeightSource::kVersion;
      instruction.version_slot = slot_of.at(instruction.version);
      if (last_reader.at(instruction.version) == i) pool.give(instruction.version_slot);
    }
    out.push_back(instruction);
  }
  program = std::move(out);
  return pool.size();
}

std::int32_t insert_predictions(Program& program) {
  Program out;
  out.reserve(program.size() + program.size() / 3);
  std::int32_t live = 0;
  std::vector<std::pair<std::int32_t, std::int32_t>> held;  // version and horizon, by predicted copy
  for (const Instruction& instruction : program) {
    if (instruction.op == Op::kUpdate) ++live;
    if (is_compute(instruction.op) && instruction.source == WeightSource::kPredicted) {
      const auto slot = static_cast<std::size_t>(instruction.predicted_slot);
      if (slot >= held.size()) held.resize(slot + 1, {-1, 0});
      const std::pair wanted{instruction.version, instruction.horizon};
      if (held[slot] != wanted) {
        if (!out.empty() && out.back().op == Op::kUpdate) {
          out.back().op = Op::kUpdatePredict;
          out.back().horizon = instruction.horizon;
          out.back().predicted_slot = instruction.predicted_slot;
        } else {
          Instruction predict = like(instruction, Op::kPredict);
          predict.version = live;
          out.push_back(predict);
        }
        held[slot] = wanted;
      }
    }
    out.push_back(instruction);
  }
  program = std::move(out);
  return static_cast<std::int32_t>(held.size());
}

std::int32_t assign_slots(Program& program) {
  const Op last_use = splits_backward(program) ? Op::kBackwardWeights : Op::kBackward;
  SlotPool pool;
  std::unordered_map<std::int32_t, std::int32_t> slot_of;
  for (Instruction& instruction : program) {
    if (!is_compute(instruction.op)) continue;
    if (instruction.op == Op::kForward) slot_of[instruction.microbatch] = pool.take();
    instruction.slot = slot_of.at(instruction.microbatch);
    if (instruction.op == last_use) {
      pool.give(instruction.slot);
      slot_of.erase(instruction.microbatch);
    }
  }
  return pool.size();
}

void insert_transfers(Program& program, std::int32_t stage, std::int32_t depth) {
  Program out;
  out.reserve(2 * program.size());
  const bool first = stage == 0;
  const bool last = stage + 1 == depth;
  for (const Instruction& instruction : program) {
    const bool forward = instruction.op == Op::kForward;
    const bool backward = makes_input_gradient(instruction.op);
    if (forward && !first) out.push_back(like(instruction, Op::kReceiveActivation));
    if (backward && !last) out.push_back(like(instruction, Op::kReceiveGradient));
    out.push_back(instruction);
    if (forward && !last) out.push_back(like(instruction, Op::kSendActivation));
    if (backward && !first) out.push_back(like(instruction, Op::kSendGradient));
  }
  program = std::move(out);
}

}  // namespace pipeoptim
