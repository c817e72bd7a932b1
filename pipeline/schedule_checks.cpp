#include "pipeline/schedule_checks.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace pipeoptim {
namespace {

// Evaluation: no stage goes backward or updates.
bool forward_only(const Schedule& schedule) {
  return std::all_of(schedule.stages.begin(), schedule.stages.end(), [](const Program& program) {
    return std::all_of(program.begin(), program.end(), [](const Instruction& i) {
      return i.op == Op::kForward || i.op == Op::kSendActivation || i.op == Op::kReceiveActivation;
    });
  });
}

// What has happened to one micro-batch on the stage.
struct Progress {
  bool received_activation = false, forward = false, sent_activation = false;
  bool received_gradient = false, backward_input = false, backward_weights = false, sent_gradient = false;
  std::int32_t slot = -1;
};

class StageChecker {
 public:
  StageChecker(const Schedule& schedule, int stage)
      : schedule_(schedule),
        stage_(stage),
        first_(stage == 0),
        last_(stage + 1 == schedule.depth()),
        forward_only_(forward_only(schedule)),
        slots_(static_cast<std::size_t>(schedule.slots[static_cast<std::size_t>(stage)])),
        version_holds_(static_cast<std::size_t>(schedule.version_slots[static_cast<std::size_t>(stage)]), -1),
        predictions_(static_cast<std::size_t>(schedule.predicted_slots[static_cast<std::size_t>(stage)])),
        progress_(static_cast<std::size_t>(schedule.microbatches)) {}

  void run() {
    for (const Instruction& instruction : schedule_.stages[static_cast<std::size_t>(stage_)]) {
      check(instruction);
      ++index_;
    }
    for (std::size_t j = 0; j < progress_.size(); ++j) {
      const Progress& done = progress_[j];
      const bool backward = done.backward_input && done.backward_weights;
      const bool sent = (last_ || done.sent_activation) && (first_ || forward_only_ || done.sent_gradient);
      if (!done.forward || backward == forward_only_ || !sent) {
        throw std::logic_error("stage " + std::to_string(stage_) + ": micro-batch " + std::to_string(j) +
                               " does not have exactly one forward, one whole backward and their transfers");
      }
    }
    const std::int32_t updates =
        forward_only_ ? 0 : schedule_.microbatches / schedule_.microbatches_per_update;
    if (live_ != updates) {
      throw std::logic_error("stage " + std::to_string(stage_) + ": " + std::to_string(live_) +
                             " updates instead of " + std::to_string(updates));
    }
  }

 private:
  // An activation slot: who wrote it last, and whether that micro-batch still needs it.
  struct Slot {
    std::int32_t holder = -1;
    bool in_use = false;
  };

  struct Prediction {
    std::int32_t version = -1, horizon = 0;
    friend bool operator==(const Prediction&, const Prediction&) = default;
  };

  void require(bool holds, const Instruction& instruction, const char* what) const {
    if (holds) return;
    throw std::logic_error("stage " + std::to_string(stage_) + ", instruction " + std::to_string(index_) +
                           " (" + to_string(instruction) + "): " + what);
  }

  void check(const Instruction& i) {
    require(i.microbatch >= 0 && i.microbatch < schedule_.microbatches, i, "micro-batch out of range");
    require(i.minibatch == i.microbatch / schedule_.microbatches_per_update, i,
            "its mini-batch is not that of its micro-batch");
    switch (i.op) {
      case Op::kForward:
        return check_forward(i);
      case Op::kBackward:
      case Op::kBackwardInput:
      case Op::kBackwardWeights:
        return check_backward(i);
      case Op::kUpdate:
      case Op::kUpdatePredict:
        return check_update(i);
      case Op::kPredict:
        require(i.version == live_, i, "predicts from a version that is not live");
        return hold_prediction(i);
      case Op::kStashWeights:
        require(i.version == live_, i, "stashes a version that is not live");
        require(in_range(i.version_slot, version_holds_.size()), i, "version slot out of range");
        version_holds_[static_cast<std::size_t>(i.version_slot)] = i.version;
        return;
      case Op::kReceiveActivation:
      case Op::kSendActivation:
        return check_activation(i);
      case Op::kReceiveGradient:
      case Op::kSendGradient:
        return check_gradient(i);
    }
  }

  void check_forward(const Instruction& i) {
    Progress& done = progress(i);
    require(!done.forward, i, "the second forward of its micro-batch");
    require(first_ || done.received_activation, i, "waits for an activation that is not received before it");
    check_weights(i);
    if (first_) take_slot(i);  // elsewhere the receive took it
    check_slot(i);
    done.forward = true;
    if (forward_only_ && last_) slot(i).in_use = false;
  }

  void check_backward(const Instruction& i) {
    Progress& done = progress(i);
    require(done.forward, i, "waits for the forward of its micro-batch, which comes later");
    check_slot(i);
    require(slot(i).in_use, i, "its activation slot has been given back");
    check_weights(i);
    if (i.op != Op::kBackwardWeights) {
      require(!done.backward_input, i, "the second backward of its micro-batch");
      require(last_ || done.received_gradient, i, "waits for a gradient that is not received before it");
      done.backward_input = true;
    }
    if (i.op == Op::kBackwardInput) return;
    require(done.backward_input, i, "waits for the input gradient, which comes later");
    require(!done.backward_weights, i, "the second weight gradient of its micro-batch");
    require(i.microbatch == last_backward_ + 1, i, "weight gradients are not in the order of micro-batches");
    done.backward_weights = true;
    last_backward_ = i.microbatch;
    slot(i).in_use = false;
  }

  void check_update(const Instruction& i) {
    require(i.version == ++live_, i, "the version it makes is not the next one");
    require(last_backward_ == live_ * schedule_.microbatches_per_update - 1, i,
            "the weight gradients before it are not those of its mini-batch");
    require(i.microbatch == last_backward_, i, "does not name the last backward before it");
    if (i.op == Op::kUpdatePredict) hold_prediction(i);
  }

  void check_activation(const Instruction& i) {
    Progress& done = progress(i);
    if (i.op == Op::kReceiveActivation) {
      require(!first_, i, "the first stage receives no activation");
      require(!done.received_activation, i, "the second receive of its micro-batch");
      done.received_activation = true;
      return take_slot(i);
    }
    require(!last_, i, "the last stage sends no activation");
    require(done.forward, i, "waits for the forward of its micro-batch, which comes later");
    require(!done.sent_activation, i, "the second send of its micro-batch");
    check_slot(i);
    done.sent_activation = true;
    if (forward_only_) slot(i).in_use = false;
  }

  void check_gradient(const Instruction& i) {
    Progress& done = progress(i);
    if (i.op == Op::kReceiveGradient) {
      require(!last_, i, "the last stage receives no gradient");
      require(done.forward, i, "waits for the forward of its micro-batch, which comes later");
      require(!done.received_gradient, i, "the second receive of its micro-batch");
      check_slot(i);
      done.received_gradient = true;
      return;
    }
    require(!first_, i, "the first stage sends no gradient");
    require(done.backward_input, i, "waits for the backward of its micro-batch, which comes later");
    require(!done.sent_gradient, i, "the second send of its micro-batch");
    check_slot(i);
    done.sent_gradient = true;
  }

  void check_weights(const Instruction& i) {
    require((i.source == WeightSource::kPredicted) == (i.horizon != 0), i,
            "a prediction needs a horizon, anything else horizon 0");
    switch (i.source) {
      case WeightSource::kLive:
        return require(i.version == live_, i, "reads the live weights, but they are another version");
      case WeightSource::kPredicted:
        require(in_range(i.predicted_slot, predictions_.size()), i, "predicted copy out of range");
        return require(prediction(i) == Prediction{i.version, i.horizon}, i,
                       "the predicted copy holds another version or horizon");
      case WeightSource::kVersion:
        require(in_range(i.version_slot, version_holds_.size()), i, "version slot out of range");
        return require(version_holds_[static_cast<std::size_t>(i.version_slot)] == i.version, i,
                       "its version slot holds another version");
    }
  }

  void take_slot(const Instruction& i) {
    require(in_range(i.slot, slots_.size()), i, "activation slot out of range");
    require(!slot(i).in_use, i, "its activation slot is still in use");
    slot(i) = {i.microbatch, true};
    progress(i).slot = i.slot;
  }

  // The slot is the one its micro-batch took, and nobody has taken it since.
  void check_slot(const Instruction& i) {
    require(i.slot == progress(i).slot, i, "names another activation slot than its micro-batch has");
    require(slot(i).holder == i.microbatch, i, "its activation slot holds another micro-batch");
  }

  void hold_prediction(const Instruction& i) {
    require(i.horizon != 0, i, "a prediction needs a horizon");
    require(in_range(i.predicted_slot, predictions_.size()), i, "predicted copy out of range");
    prediction(i) = {live_, i.horizon};
  }

  static bool in_range(std::int32_t index, std::size_t size) {
    return index >= 0 && static_cast<std::size_t>(index) < size;
  }
  Progress& progress(const Instruction& i) { return progress_[static_cast<std::size_t>(i.microbatch)]; }
  Prediction& prediction(const Instruction& i) {
    return predictions_[static_cast<std::size_t>(i.predicted_slot)];
  }
  Slot& slot(const Instruction& i) { return slots_[static_cast<std::size_t>(i.slot)]; }

  const Schedule& schedule_;
  int stage_;
  bool first_, last_, forward_only_;
  std::size_t index_ = 0;
  std::int32_t live_ = 0;
  std::int32_t last_backward_ = -1;
  std::vector<Slot> slots_;
  std::vector<std::int32_t> version_holds_;
  std::vector<Prediction> predictions_;  // by copy
  std::vector<Progress> progress_;
};

}  // namespace

void check_stage(const Schedule& schedule, int stage) { StageChecker(schedule, stage).run(); }

}  // namespace pipeoptim
