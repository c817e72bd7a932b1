// Schedules against the closed forms of docs/methods.md, and tampered schedules against the validation.
#include "pipeline/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace pipeoptim {
namespace {

using Case = std::tuple<std::string, int, int, int>;  // method, depth, mini-batches, micro-batches per update
class Schedules : public testing::TestWithParam<Case> {};

// What F and B of one stage are annotated with, by micro-batch.
struct Passes {
  std::vector<Instruction> forward, backward;
};
Passes passes_of(const Schedule& schedule, int k) {
  const auto size = static_cast<std::size_t>(schedule.microbatches);
  Passes passes{std::vector<Instruction>(size), std::vector<Instruction>(size)};
  for (const Instruction& i : schedule.stages[static_cast<std::size_t>(k)]) {
    if (i.op == Op::kForward) passes.forward[static_cast<std::size_t>(i.microbatch)] = i;
    if (i.op == Op::kBackward) passes.backward[static_cast<std::size_t>(i.microbatch)] = i;
  }
  return passes;
}

int up(int a, int b) { return (a + b - 1) / b; }

TEST_P(Schedules, FollowTheTableOfMethods) {
  const auto& [method, depth, minibatches, m] = GetParam();
  if (method == "pipedream-2bw" && m < depth - 1) {
    EXPECT_THROW(make_schedule(method, {depth, minibatches, m}), std::invalid_argument);
    return;
  }
  const Schedule schedule =
      make_schedule(method, {depth, minibatches, m});  // validates at channel capacity 1
  const bool synchronous = method == "sequential" || method == "gpipe" || method == "1f1b";
  for (int k = 0; k < depth; ++k) {
    const int warm_up = depth - 1 - k;
    const Passes passes = passes_of(schedule, k);
    for (int j = 0; j < schedule.microbatches; ++j) {
      const Instruction& f = passes.forward[static_cast<std::size_t>(j)];
      const Instruction& b = passes.backward[static_cast<std::size_t>(j)];
      const int early = std::max(0, j - warm_up) / m;  // updates done before F(j): F1 for m = 1
      const int batch = j / m;                         // and before B(j): F2
      SCOPED_TRACE("stage " + std::to_string(k) + ", micro-batch " + std::to_string(j));
      EXPECT_EQ(b.minibatch, batch);
      int forward_version = early, backward_version = batch, forward_horizon = 0, backward_horizon = 0;
      if (synchronous) forward_version = batch;
      if (method == "pipedream") backward_version = early;
      if (method == "pipedream-2bw") forward_version = backward_version = std::max(batch - 1, 0);
      if (method == "spectrain") {
        forward_horizon = up(k / 2 + warm_up, m);
        backward_horizon = up(k / 2, m);
      }
      if (method == "pipeoptim") forward_horizon = batch - early;  // F3
      EXPECT_EQ(f.version, forward_version);
      EXPECT_EQ(b.version, backward_version);
      EXPECT_EQ(f.horizon, forward_horizon);
      EXPECT_EQ(b.horizon, backward_horizon);
    }
    const int slots = schedule.slots[static_cast<std::size_t>(k)];
    if (method == "gpipe") {
      EXPECT_EQ(slots, m);
    }
    if (method == "1f1b") {
      EXPECT_EQ(slots, std::min(m, warm_up + 1));
    }
    if (!synchronous) {
      EXPECT_EQ(slots, std::min(schedule.microbatches, warm_up + 1));  // F4
    }
    const int copies = schedule.version_slots[static_cast<std::size_t>(k)];
    if (method == "pipedream") {
      EXPECT_LE(copies, up(warm_up, m));
    } else if (method == "pipedream-2bw") {
      EXPECT_LE(copies, 1);
    } else {
      EXPECT_EQ(copies, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Schedules,
                         testing::Combine(testing::ValuesIn(method_names()), testing::Values(1, 2, 3, 4, 8),
                                          testing::Values(1, 2, 3, 5, 20), testing::Values(1, 2, 4, 8)));

TEST(Schedule, HorizonPolicies) {
  // O6: D = 4, t = 4: base versions 1, 2, 3, 4 and distances 3, 2, 1, 0.
  for (int k = 0; k < 4; ++k) {
    const auto f = [&](HorizonPolicy policy, std::size_t t) {
      return passes_of(make_schedule("pipeoptim", {4, 9, 1, policy}), k).forward[t];
    };
    EXPECT_EQ(f(HorizonPolicy::kExact, 4).version, k + 1);
    EXPECT_EQ(f(HorizonPolicy::kExact, 4).horizon, 3 - k);
    EXPECT_EQ(f(HorizonPolicy::kExact, 1).horizon, std::min(1, 3 - k));
    EXPECT_EQ(f(HorizonPolicy::kPaper, 1).horizon, 3 - k);
    EXPECT_EQ(f(HorizonPolicy::kReleasedCode, 4).horizon, 4 - k);
  }
}

TEST(Schedule, OneStageIsSequential) {
  const Schedule sequential = make_schedule("sequential", {1, 6, 1});
  for (const std::string& method : method_names()) {
    if (method == "pipedream-2bw") continue;
    EXPECT_EQ(make_schedule(method, {1, 6, 1}).stages, sequential.stages) << method;
  }
}

TEST(Schedule, SteadyStateFusesUpdateAndPrediction) {
  const Schedule schedule = make_schedule("pipeoptim", {4, 20, 1});
  for (int k = 0; k < 3; ++k) {
    const Program& program = schedule.stages[static_cast<std::size_t>(k)];
    const auto count = [&](Op op) {
      return std::count_if(program.begin(), program.end(), [op](const Instruction& i) { return i.op == op; });
    };
    EXPECT_EQ(count(Op::kUpdatePredict) + count(Op::kUpdate), 20);
    EXPECT_EQ(count(Op::kUpdate), 4 - k) << "only the last updates have no forward after them";
  }
}

TEST(Schedule, TamperedSchedulesAreRefused) {
  const Schedule good = make_schedule("pipeoptim", {4, 8, 1});
  const auto find = [](Program& program, Op op, std::int32_t j) {
    return std::find_if(program.begin(), program.end(),
                        [=](const Instruction& i) { return i.op == op && i.microbatch == j; });
  };
  Schedule bad = good;
  bad.stages[1].erase(find(bad.stages[1], Op::kSendActivation, 3));
  EXPECT_THROW(validate(bad), std::logic_error) << "a missing send";
  bad = good;
  std::iter_swap(find(bad.stages[1], Op::kSendActivation, 0), find(bad.stages[1], Op::kSendActivation, 1));
  EXPECT_THROW(validate(bad), std::logic_error) << "sends out of order";
  bad = good;
  find(bad.stages[0], Op::kForward, 5)->version += 1;
  EXPECT_THROW(validate(bad), std::logic_error) << "a wrong version";
  bad = good;
  find(bad.stages[0], Op::kForward, 5)->horizon += 1;
  EXPECT_THROW(validate(bad), std::logic_error) << "a horizon that the predicted copy does not hold";
  bad = good;
  find(bad.stages[0], Op::kForward, 1)->slot = 0;
  EXPECT_THROW(validate(bad), std::logic_error) << "a slot in use";
  bad = good;
  bad.stages[2].erase(find(bad.stages[2], Op::kBackward, 7));
  EXPECT_THROW(validate(bad), std::logic_error) << "a missing backward";
}

TEST(Schedule, IssueOrderNeverReceivesBeforeTheSend) {
  for (const std::string& method : method_names()) {
    const Schedule schedule = make_schedule(method, {4, 10, 4});
    std::vector<int> sent(4, 0), received(4, 0);
    std::size_t steps = 0;
    for (const IssueStep& step : issue_order(schedule)) {
      const auto k = static_cast<std::size_t>(step.stage);
      const Instruction& i = schedule.stages[k][static_cast<std::size_t>(step.index)];
      if (i.op == Op::kSendActivation) ++sent[k];
      if (i.op == Op::kReceiveActivation) {
        EXPECT_LT(received[k]++, sent[k - 1]);
      }
      ++steps;
    }
    std::size_t all = 0;
    for (const Program& program : schedule.stages) all += program.size();
    EXPECT_EQ(steps, all);
  }
}

TEST(Schedule, Draws) {
  const std::string picture = draw(make_schedule("pipeoptim", {2, 3, 1}));
  EXPECT_NE(picture.find("stage 0 | F0  F1  .   B0  F2"), std::string::npos) << picture;
  EXPECT_NE(picture.find("stage 1 | .   F0  B0  F1  B1"), std::string::npos) << picture;
}

TEST(Schedule, RefusesImpossibleNumbers) {
  EXPECT_THROW(make_schedule("pipeoptim", {0, 1, 1}), std::invalid_argument);
  EXPECT_THROW(make_schedule("pipeoptim", {1, 0, 1}), std::invalid_argument);
  EXPECT_THROW(make_schedule("pipeoptim", {1, 1, 0}), std::invalid_argument);
  try {
    make_schedule("pipeoptin", {1, 1, 1});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("'pipeoptim'"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pipeoptim
