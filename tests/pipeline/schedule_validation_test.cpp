// validate() refuses schedules that were tampered with, and says where and why.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "pipeline/schedule.h"

namespace pipeoptim {
namespace {

using Position = Program::iterator;

Position find(Program& program, Op op, std::int32_t j) {
  const auto found = std::find_if(program.begin(), program.end(),
                                  [=](const Instruction& i) { return i.op == op && i.microbatch == j; });
  if (found == program.end()) throw std::runtime_error("the test looks for an instruction that is not there");
  return found;
}

// Swaps two instructions and nothing else.
void swap(Program& program, Op a, std::int32_t a_microbatch, Op b, std::int32_t b_microbatch) {
  std::iter_swap(find(program, a, a_microbatch), find(program, b, b_microbatch));
}

std::string refusal(const Schedule& schedule, int capacity = 1) {
  try {
    validate(schedule, capacity);
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "accepted";
}

struct Tampering {
  const char* name;
  const char* method;
  std::function<void(Schedule&)> apply;
  const char* message;  // part of it
};

void PrintTo(const Tampering& tampering, std::ostream* out) { *out << tampering.name; }

class Tampered : public testing::TestWithParam<Tampering> {};

TEST_P(Tampered, IsRefused) {
  Schedule schedule = make_schedule(GetParam().method, {4, 8, 1});
  ASSERT_EQ(refusal(schedule), "accepted");
  GetParam().apply(schedule);
  const std::string message = refusal(schedule);
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
}

const Tampering kTransfers[] = {
    {"MissingSend", "pipeoptim",
     [](Schedule& s) { s.stages[1].erase(find(s.stages[1], Op::kSendActivation, 7)); },
     "stage 2, instruction"},
    {"MissingSendNamesWhatIsAwaited", "pipeoptim",
     [](Schedule& s) { s.stages[1].erase(find(s.stages[1], Op::kSendActivation, 7)); },
     "waits for the activation of micro-batch 7 from stage 1"},
    {"MissingGradientNamesWhatIsAwaited", "pipeoptim",
     [](Schedule& s) { s.stages[2].erase(find(s.stages[2], Op::kSendGradient, 7)); },
     "waits for the gradient of micro-batch 7 from stage 2"},
    {"MissingReceive", "pipeoptim",
     [](Schedule& s) { s.stages[2].erase(find(s.stages[2], Op::kReceiveActivation, 7)); },
     "waits for an activation that is not received"},
    {"MissingGradientReceive", "pipeoptim",
     [](Schedule& s) { s.stages[2].erase(find(s.stages[2], Op::kReceiveGradient, 7)); },
     "waits for a gradient that is not received"},
    {"MissingSendAndReceive", "pipeoptim",
     [](Schedule& s) {
       s.stages[1].erase(find(s.stages[1], Op::kSendActivation, 7));
       s.stages[2].erase(find(s.stages[2], Op::kReceiveActivation, 7));
     },
     "stage 1: micro-batch 7 does not have"},
    {"SendsOutOfOrder", "pipeoptim",
     [](Schedule& s) { swap(s.stages[1], Op::kSendActivation, 0, Op::kSendActivation, 1); },
     "would receive micro-batch"},
    {"SendBeforeForward", "pipeoptim",
     [](Schedule& s) { swap(s.stages[1], Op::kForward, 0, Op::kSendActivation, 0); },
     "waits for the forward"},
    {"GradientSendBeforeBackward", "pipeoptim",
     [](Schedule& s) { swap(s.stages[3], Op::kBackward, 7, Op::kSendGradient, 7); },
     "waits for the backward"},
    {"ReceiveAfterForward", "pipeoptim",
     [](Schedule& s) { swap(s.stages[3], Op::kReceiveActivation, 2, Op::kForward, 2); },
     "waits for an activation"},
    {"ReceiveAfterBackward", "pipeoptim",
     [](Schedule& s) { swap(s.stages[2], Op::kReceiveGradient, 7, Op::kBackward, 7); },
     "waits for a gradient"},
    {"SecondSend", "pipeoptim",
     [](Schedule& s) { s.stages[0].push_back(*find(s.stages[0], Op::kSendActivation, 7)); },
     "the second send"},
    {"SendFromTheLastStage", "pipeoptim",
     [](Schedule& s) {
       Instruction send = *find(s.stages[3], Op::kForward, 7);
       send.op = Op::kSendActivation;
       s.stages[3].push_back(send);
     },
     "the last stage sends no activation"},
    {"WarmUpTooShort", "gpipe",  // stage 1 wants a gradient before it hands on what the gradient needs
     [](Schedule& s) { swap(s.stages[1], Op::kSendActivation, 0, Op::kReceiveGradient, 0); }, "deadlocks"},
};

const Tampering kOrder[] = {
    {"MissingForward", "naive", [](Schedule& s) { s.stages[3].erase(find(s.stages[3], Op::kForward, 7)); },
     "waits for the forward"},
    {"MissingBackward", "pipeoptim",
     [](Schedule& s) { s.stages[2].erase(find(s.stages[2], Op::kBackward, 7)); }, "waits for the backward"},
    {"MissingLastBackward", "pipeoptim",
     [](Schedule& s) { s.stages[0].erase(find(s.stages[0], Op::kBackward, 7)); },
     "the weight gradients before it"},
    {"SecondForward", "naive",
     [](Schedule& s) { s.stages[0].push_back(*find(s.stages[0], Op::kForward, 7)); }, "the second forward"},
    {"MissingUpdate", "naive", [](Schedule& s) { s.stages[0].erase(find(s.stages[0], Op::kUpdate, 7)); },
     "7 updates instead of 8"},
    {"UpdateBeforeBackward", "pipedream",
     [](Schedule& s) { swap(s.stages[0], Op::kBackward, 5, Op::kUpdate, 5); },
     "the weight gradients before it"},
    {"UpdateOfAnotherMicrobatch", "naive",
     [](Schedule& s) {
       Instruction& update = *find(s.stages[0], Op::kUpdate, 5);
       update.microbatch = update.minibatch = 4;
     },
     "does not name the last backward"},
    {"WrongMinibatch", "naive", [](Schedule& s) { find(s.stages[0], Op::kForward, 5)->minibatch = 4; },
     "its mini-batch is not"},
    {"MicrobatchOutOfRange", "naive", [](Schedule& s) { find(s.stages[0], Op::kUpdate, 7)->microbatch = 8; },
     "micro-batch out of range"},
};

const Tampering kWeights[] = {
    {"WrongPredictedVersion", "pipeoptim", [](Schedule& s) { ++find(s.stages[0], Op::kForward, 5)->version; },
     "the predicted copy holds another"},
    {"WrongHorizon", "pipeoptim", [](Schedule& s) { ++find(s.stages[0], Op::kForward, 5)->horizon; },
     "the predicted copy holds another"},
    {"UpdateWithoutItsPrediction", "pipeoptim",
     [](Schedule& s) { find(s.stages[0], Op::kUpdatePredict, 1)->op = Op::kUpdate; },
     "the predicted copy holds another"},
    {"PredictionOverwritten", "spectrain",
     [](Schedule& s) { s.stages[2].erase(find(s.stages[2], Op::kPredict, 4)); },
     "the predicted copy holds another"},
    {"HorizonOnLiveWeights", "naive", [](Schedule& s) { find(s.stages[0], Op::kForward, 5)->horizon = 1; },
     "a prediction needs a horizon"},
    {"WrongLiveVersion", "naive", [](Schedule& s) { ++find(s.stages[0], Op::kForward, 5)->version; },
     "reads the live weights"},
    {"WrongUpdateVersion", "naive", [](Schedule& s) { ++find(s.stages[0], Op::kUpdate, 5)->version; },
     "is not the next one"},
    {"MissingStash", "pipedream",
     [](Schedule& s) { s.stages[0].erase(find(s.stages[0], Op::kStashWeights, 2)); },
     "its version slot holds another version"},
    {"StashOverwritesAVersionInUse", "pipedream",
     [](Schedule& s) { find(s.stages[0], Op::kStashWeights, 2)->version_slot = 0; },
     "its version slot holds another version"},
    {"WrongStashedVersion", "pipedream", [](Schedule& s) { ++find(s.stages[0], Op::kBackward, 5)->version; },
     "its version slot holds another version"},
    {"VersionSlotOutOfRange", "pipedream", [](Schedule& s) { s.version_slots[0] = 2; },
     "version slot out of range"},
};

const Tampering kSlots[] = {
    {"SlotInUse", "pipeoptim", [](Schedule& s) { find(s.stages[0], Op::kForward, 1)->slot = 0; },
     "its activation slot is still in use"},
    {"ReceiveIntoASlotInUse", "pipeoptim",
     [](Schedule& s) { find(s.stages[1], Op::kReceiveActivation, 1)->slot = 0; },
     "its activation slot is still in use"},
    {"BackwardOfAnotherSlot", "pipeoptim", [](Schedule& s) { find(s.stages[0], Op::kBackward, 1)->slot = 2; },
     "names another activation slot"},
    {"SendOfAnotherSlot", "pipeoptim",
     [](Schedule& s) { find(s.stages[0], Op::kSendActivation, 1)->slot = 2; },
     "names another activation slot"},
    {"SlotOutOfRange", "pipeoptim", [](Schedule& s) { s.slots[0] = 3; }, "activation slot out of range"},
    {"NoSlots", "pipeoptim", [](Schedule& s) { s.slots.pop_back(); }, "does not give every stage's slots"},
    {"HalfAMinibatch", "pipeoptim", [](Schedule& s) { s.microbatches_per_update = 3; }, "whole number"},
};

const auto kName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Transfers, Tampered, testing::ValuesIn(kTransfers), kName);
INSTANTIATE_TEST_SUITE_P(Order, Tampered, testing::ValuesIn(kOrder), kName);
INSTANTIATE_TEST_SUITE_P(Weights, Tampered, testing::ValuesIn(kWeights), kName);
INSTANTIATE_TEST_SUITE_P(Slots, Tampered, testing::ValuesIn(kSlots), kName);

Instruction instruction(Op op, std::int32_t j, std::int32_t slot) {
  return {.op = op, .microbatch = j, .minibatch = 0, .slot = slot};
}

// One mini-batch of two micro-batches on two stages; the first stage's weight gradients come last.
Schedule split_backward() {
  Instruction update = instruction(Op::kUpdate, 1, -1);
  update.version = 1;
  Schedule schedule;
  schedule.microbatches = schedule.microbatches_per_update = 2;
  schedule.slots = {2, 1};
  schedule.version_slots = {0, 0};
  schedule.predicted_slots = {0, 0};
  schedule.stages.resize(2);
  schedule.stages[0] = {instruction(Op::kForward, 0, 0),
                        instruction(Op::kSendActivation, 0, 0),
                        instruction(Op::kForward, 1, 1),
                        instruction(Op::kSendActivation, 1, 1),
                        instruction(Op::kReceiveGradient, 0, 0),
                        instruction(Op::kBackwardInput, 0, 0),
                        instruction(Op::kReceiveGradient, 1, 1),
                        instruction(Op::kBackwardInput, 1, 1),
                        instruction(Op::kBackwardWeights, 0, 0),
                        instruction(Op::kBackwardWeights, 1, 1),
                        update};
  for (const std::int32_t j : {0, 1}) {
    for (const Op op : {Op::kReceiveActivation, Op::kForward, Op::kBackwardInput, Op::kSendGradient,
                        Op::kBackwardWeights}) {
      schedule.stages[1].push_back(instruction(op, j, 0));
    }
  }
  schedule.stages[1].push_back(update);
  return schedule;
}

TEST(SplitBackward, IsAccepted) { EXPECT_EQ(refusal(split_backward()), "accepted"); }

TEST(SplitBackward, KeepsTheOrderOfItsParts) {
  Schedule bad = split_backward();
  swap(bad.stages[0], Op::kBackwardInput, 1, Op::kBackwardWeights, 1);
  EXPECT_NE(refusal(bad).find("waits for the input gradient"), std::string::npos) << refusal(bad);
  bad = split_backward();
  swap(bad.stages[0], Op::kBackwardWeights, 0, Op::kBackwardWeights, 1);
  EXPECT_NE(refusal(bad).find("not in the order of micro-batches"), std::string::npos) << refusal(bad);
  bad = split_backward();  // the slot is in use until the weight gradient is done
  swap(bad.stages[1], Op::kBackwardWeights, 0, Op::kReceiveActivation, 1);
  EXPECT_NE(refusal(bad).find("still in use"), std::string::npos) << refusal(bad);
  bad = split_backward();
  bad.stages[1].erase(find(bad.stages[1], Op::kBackwardWeights, 1));
  EXPECT_NE(refusal(bad).find("the weight gradients before it"), std::string::npos) << refusal(bad);
}

// Several stages on a worker: every forward and backward has its turn.
TEST(Turns, AreComplete) {
  const Schedule good =
      make_schedule("interleaved", {.workers = 2, .microbatches_per_update = 4, .chunks = 2});
  ASSERT_EQ(refusal(good), "accepted");
  Schedule bad = good;
  bad.turns[1].pop_back();
  EXPECT_NE(refusal(bad).find("one turn on its stage's worker"), std::string::npos) << refusal(bad);
  bad = good;
  std::swap(bad.turns[0], bad.turns[1]);
  EXPECT_NE(refusal(bad).find("one turn on its stage's worker"), std::string::npos) << refusal(bad);
  bad = good;
  std::sort(bad.turns[0].begin(), bad.turns[0].end(), std::greater<>());  // the second chunk first
  EXPECT_NE(refusal(bad).find("deadlocks"), std::string::npos) << refusal(bad);
  EXPECT_NE(refusal(bad).find("its turn on worker 0"), std::string::npos) << refusal(bad);
}

TEST(ForwardSchedule, TamperingIsRefused) {
  Schedule bad = make_forward_schedule(3, 4);
  bad.stages[1].erase(find(bad.stages[1], Op::kForward, 3));
  EXPECT_NE(refusal(bad).find("waits for the forward"), std::string::npos) << refusal(bad);
  bad = make_forward_schedule(3, 4);
  bad.stages[2].pop_back();
  EXPECT_NE(refusal(bad).find("exactly one forward"), std::string::npos) << refusal(bad);
}

TEST(Validate, HoldsAtEveryCapacityAndRefusesNone) {
  const Schedule schedule = make_schedule("pipeoptim", {4, 8, 1});
  for (const int capacity : {1, 2, 100}) EXPECT_EQ(refusal(schedule, capacity), "accepted");
  EXPECT_THROW(validate(schedule, 0), std::invalid_argument);
  EXPECT_THROW(validate(Schedule{}), std::logic_error);
}

}  // namespace
}  // namespace pipeoptim
