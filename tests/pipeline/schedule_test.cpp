// Schedules against the closed forms of docs/methods.md.
#include "pipeline/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "pipeline/methods.h"

namespace pipeoptim {
namespace {

using Case = std::tuple<std::string, int>;  // method, workers
class Schedules : public testing::TestWithParam<Case> {
 protected:
  const std::string method = std::get<0>(GetParam());
  const int workers = std::get<1>(GetParam());

  // Calls check(mini-batches, micro-batches per update).
  template <typename Check>
  static void for_each_length(const Check& check) {
    for (const int minibatches : {1, 2, 3, 5, 20}) {
      for (const int m : {1, 2, 4, 8}) {
        SCOPED_TRACE(std::to_string(minibatches) + " mini-batches of " + std::to_string(m));
        check(minibatches, m);
      }
    }
  }
};

// What F and B of one stage are annotated with, by micro-batch.
struct Passes {
  std::vector<Instruction> forward, backward;
};
Passes passes_of(const Schedule& schedule, int k) {
  const auto size = static_cast<std::size_t>(schedule.microbatches);
  Passes passes{std::vector<Instruction>(size), std::vector<Instruction>(size)};
  for (const Instruction& i : schedule.stages[static_cast<std::size_t>(k)]) {
    if (i.op == Op::kForward) passes.forward[static_cast<std::size_t>(i.microbatch)] = i;
    if (makes_input_gradient(i.op)) passes.backward[static_cast<std::size_t>(i.microbatch)] = i;
  }
  return passes;
}

int up(int a, int b) { return (a + b - 1) / b; }

// Whether the method can run with these numbers; where it cannot, it must say so.
bool possible(const std::string& method, int depth, int m) {
  if (method == "pipedream-2bw") return m >= depth - 1;
  return method != "delayed" || depth == 1;
}

bool synchronous(const std::string& method) { return !is_asynchronous(find_method(method).order); }

struct Reads {
  int forward_version, backward_version, forward_horizon = 0, backward_horizon = 0;
};

// The table of docs/methods.md, one stage on each worker.
Reads table(const std::string& method, int depth, int k, int j, int m) {
  const int warm_up = depth - 1 - k;
  const int early = std::max(0, j - warm_up) / m;  // updates done before F(j): F1 for m = 1
  const int batch = j / m;                         // and before B(j): F2
  if (synchronous(method)) return {batch, batch};
  if (method == "pipedream" || method == "async-nag") return {early, early};
  if (method == "pipedream-vertical") {
    const int version = std::max(0, j - (depth - 1)) / m;
    return {version, version};
  }
  if (method == "pipedream-2bw") return {std::max(batch - 1, 0), std::max(batch - 1, 0)};
  if (method == "spectrain") return {early, batch, up(k / 2 + warm_up, m), up(k / 2, m)};
  if (method == "xpipe") {
    const int bellwether = std::max(0, batch * m - warm_up) / m;
    return {bellwether, batch, up(k / 2 + warm_up, m), up(k / 2, m)};
  }
  if (method == "pipeoptim") return {early, batch, batch - early};  // F3
  if (method == "lwp" || method == "lwp-sc") return {early, batch, up(warm_up, m)};
  if (method == "pipemare") return {early, batch, 0, early - batch};
  return {early, batch};
}

TEST_P(Schedules, FollowTheTableOfMethods) {
  for_each_length([&](int minibatches, int m) {
    if (!possible(method, workers, m)) {
      EXPECT_THROW(make_schedule(method, {workers, minibatches, m}), std::invalid_argument);
      return;
    }
    const Schedule schedule =
        make_schedule(method, {workers, minibatches, m});  // validates at channel capacity 1
    ASSERT_EQ(schedule.depth(), workers * chunks_of(find_method(method), 0));
    for (int k = 0; k < schedule.depth(); ++k) {
      const Passes passes = passes_of(schedule, k);
      for (int j = 0; j < schedule.microbatches; ++j) {
        const Instruction& f = passes.forward[static_cast<std::size_t>(j)];
        const Instruction& b = passes.backward[static_cast<std::size_t>(j)];
        const Reads reads = table(method, schedule.depth(), k, j, m);
        SCOPED_TRACE("stage " + std::to_string(k) + ", micro-batch " + std::to_string(j));
        EXPECT_EQ(b.minibatch, j / m);
        EXPECT_EQ(f.version, reads.forward_version);
        EXPECT_EQ(b.version, reads.backward_version);
        EXPECT_EQ(f.horizon, reads.forward_horizon);
        EXPECT_EQ(b.horizon, reads.backward_horizon);
      }
    }
  });
}

TEST_P(Schedules, KeepNoMoreThanTheirMethodNeeds) {
  const int depth = workers;
  for_each_length([&](int minibatches, int m) {
    if (!possible(method, depth, m) || chunks_of(find_method(method), 0) > 1) return;
    const Schedule schedule = make_schedule(method, {depth, minibatches, m});
    for (int k = 0; k < depth; ++k) {
      SCOPED_TRACE("stage " + std::to_string(k));
      const int warm_up = depth - 1 - k;
      const int slots = schedule.slots[static_cast<std::size_t>(k)];
      if (method == "gpipe") {
        EXPECT_EQ(slots, m);
      } else if (method == "1f1b") {
        EXPECT_EQ(slots, std::min(m, warm_up + 1));
      } else if (method == "zb-h1") {
        EXPECT_LE(slots, depth);
      } else if (method == "zb-h2" || method == "zb-auto") {
        EXPECT_LE(slots, 2 * depth - 1);
      } else if (!synchronous(method)) {
        EXPECT_EQ(slots, std::min(schedule.microbatches, warm_up + 1));  // F4
      }
      const int predicted = schedule.predicted_slots[static_cast<std::size_t>(k)];
      EXPECT_LE(predicted, method == "xpipe" ? 2 : 1);
      if (method == "pipeoptim") {
        EXPECT_EQ(predicted, warm_up > 0 && minibatches > 1 ? 1 : 0);
      }
      const int copies = schedule.version_slots[static_cast<std::size_t>(k)];
      if (method == "pipedream" || method == "async-nag") {
        EXPECT_LE(copies, up(warm_up, m));
        // Stashed versions are those with a forward whose backward comes after the next update.
        const int stashed = std::max(1, std::min(warm_up, minibatches - warm_up));
        if (m == 1) {
          EXPECT_EQ(copies, warm_up == 0 || minibatches == 1 ? 0 : stashed);
        }
      } else if (method == "pipedream-vertical") {
        EXPECT_LE(copies, up(depth - 1, m));
      } else if (method == "pipedream-2bw") {
        EXPECT_LE(copies, 1);
      } else {
        EXPECT_EQ(copies, 0);
      }
    }
  });
}

TEST_P(Schedules, ConstantHorizonsDivideByTheMicrobatches) {
  const int depth = workers;
  for_each_length([&](int minibatches, int m) {
    if (method != "pipeoptim") return;
    for (const HorizonPolicy policy : {HorizonPolicy::kPaper, HorizonPolicy::kReleasedCode}) {
      const Schedule schedule = make_schedule(method, {depth, minibatches, m, policy});
      for (int k = 0; k < depth; ++k) {
        const int horizon = up(policy == HorizonPolicy::kPaper ? depth - 1 - k : depth - k, m);
        for (const Instruction& f : passes_of(schedule, k).forward) {
          EXPECT_EQ(f.horizon, horizon);
          EXPECT_EQ(f.source, horizon > 0 ? WeightSource::kPredicted : WeightSource::kLive);
        }
        for (const Instruction& b : passes_of(schedule, k).backward) EXPECT_EQ(b.source, WeightSource::kLive);
      }
    }
  });
}

// The engine copies from the sender's slot when the receive is issued: neither an output nor an input
// gradient may be written again before.
TEST_P(Schedules, AreIssuedSoThatNothingIsOverwrittenBeforeItsReceive) {
  for_each_length([&](int minibatches, int m) {
    if (!possible(method, workers, m)) return;
    const Schedule schedule = make_schedule(method, {workers, minibatches, m});
    const auto stages = static_cast<std::size_t>(schedule.depth());
    std::vector<std::vector<int>> outputs(stages), gradients(stages);  // by slot: sent and not received yet
    for (std::size_t k = 0; k < stages; ++k) {
      outputs[k].assign(static_cast<std::size_t>(schedule.slots[k]), -1);
      gradients[k] = outputs[k];
    }
    const auto receive = [](std::vector<int>& sent, std::int32_t microbatch) {
      const auto found = std::find(sent.begin(), sent.end(), microbatch);
      ASSERT_NE(found, sent.end()) << "micro-batch " << microbatch << " is received before it is sent";
      *found = -1;
    };
    std::vector<std::int32_t> next(stages, 0);
    for (const IssueStep& step : issue_order(schedule)) {
      const auto k = static_cast<std::size_t>(step.stage);
      ASSERT_EQ(step.index, next[k]++) << "a stage's program is issued in its own order";
      const Instruction& i = schedule.stages[k][static_cast<std::size_t>(step.index)];
      const auto slot = static_cast<std::size_t>(i.slot);
      if (i.op == Op::kForward) {
        ASSERT_EQ(outputs[k][slot], -1);
      }
      if (makes_input_gradient(i.op)) {
        ASSERT_EQ(gradients[k][slot], -1);
      }
      if (i.op == Op::kSendActivation) outputs[k][slot] = i.microbatch;
      if (i.op == Op::kSendGradient) gradients[k][slot] = i.microbatch;
      if (i.op == Op::kReceiveActivation) receive(outputs[k - 1], i.microbatch);
      if (i.op == Op::kReceiveGradient) receive(gradients[k + 1], i.microbatch);
      if (HasFatalFailure()) return;
    }
    for (std::size_t k = 0; k < stages; ++k)
      EXPECT_EQ(next[k], static_cast<std::int32_t>(schedule.stages[k].size()));
  });
}

INSTANTIATE_TEST_SUITE_P(All, Schedules,
                         testing::Combine(testing::ValuesIn(method_names()), testing::Values(1, 2, 3, 4, 8)));

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

TEST(Schedule, OneStageIsSequential) {  // O1
  for (const int m : {1, 2, 4}) {
    const Schedule sequential = make_schedule("sequential", {1, 6, m});
    for (const std::string& method : method_names()) {
      if (method == "pipedream-2bw") continue;   // one update late by definition
      if (method == "gpipe" && m > 1) continue;  // forwards first: the same sums in another order of work
      if (method.rfind("zb-", 0) == 0 || method == "interleaved")
        continue;  // other instructions, the same sums
      EXPECT_EQ(make_schedule(method, {1, 6, m}).stages, sequential.stages) << method << ", m = " << m;
    }
  }
}

TEST(Schedule, LastStagesOfAsynchronousMethodsCoincide) {  // O9
  for (const int m : {1, 2, 4}) {
    const Schedule naive = make_schedule("naive", {2, 7, m});
    EXPECT_EQ(make_schedule("pipedream", {2, 7, m}).stages[1], naive.stages[1]);
    EXPECT_EQ(make_schedule("pipeoptim", {2, 7, m}).stages[1], naive.stages[1]);
    EXPECT_NE(make_schedule("pipedream", {2, 7, m}).stages[0], naive.stages[0]);
  }
}

TEST(Schedule, DoubleBufferingKeepsOneExtraCopy) {
  for (const int depth : {1, 2, 4}) {
    const Schedule schedule = make_schedule("pipedream-2bw", {depth, 6, 4});
    for (const std::int32_t copies : schedule.version_slots) EXPECT_EQ(copies, 1);
  }
}

TEST(Schedule, ForwardOnly) {
  for (const int depth : {1, 2, 5}) {
    for (const int microbatches : {0, 1, 2, 9}) {
      const Schedule schedule = make_forward_schedule(depth, microbatches);
      validate(schedule);
      ASSERT_EQ(schedule.depth(), depth);
      for (int k = 0; k < depth; ++k) {
        std::int32_t next = 0;
        for (const Instruction& i : schedule.stages[static_cast<std::size_t>(k)]) {
          EXPECT_EQ(i.source, WeightSource::kLive);
          if (i.op == Op::kForward) {
            EXPECT_EQ(i.microbatch, next++);
          }
        }
        EXPECT_EQ(next, microbatches);
      }
    }
  }
  EXPECT_THROW(make_forward_schedule(0, 1), std::invalid_argument);
  EXPECT_THROW(make_forward_schedule(1, -1), std::invalid_argument);
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

TEST(Schedule, Draws) {
  const std::string picture = draw(make_schedule("pipeoptim", {2, 3, 1}));
  EXPECT_NE(picture.find("stage 0 | F0  F1  .   B0  F2"), std::string::npos) << picture;
  EXPECT_NE(picture.find("stage 1 | .   F0  B0  F1  B1"), std::string::npos) << picture;
}

TEST(Schedule, DrawsWithinTheColumns) {
  const std::string picture = draw(make_schedule("pipeoptim", {3, 200, 1}), 60);
  std::size_t begin = 0;
  for (int k = 0; k < 3; ++k) {
    const std::size_t end = picture.find('\n', begin);
    EXPECT_EQ(end - begin, 60U);
    EXPECT_EQ(picture.substr(end - 3, 3), "...");
    begin = end + 1;
  }
  const std::string wide = draw(make_schedule("naive", {1, 1200, 1}), 20000);
  EXPECT_NE(wide.find(" F8    B8    F9 "), std::string::npos) << "short labels are as wide as the longest";
  EXPECT_NE(wide.find(" F1199 B1199 "), std::string::npos);
}

TEST(Schedule, RefusesTooFewMicrobatchesAndTooMany) {
  const auto message = [](const std::string& method, const ScheduleRequest& request) -> std::string {
    try {
      make_schedule(method, request);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message("pipedream-2bw", {4, 1, 2}),
            "pipedream-2bw needs at least D-1 = 3 micro-batches per mini-batch, got 2");
  EXPECT_EQ(message("pipedream-2bw", {4, 1, 3}), "accepted");
  EXPECT_EQ(message("pipedream-2bw", {1, 1, 1}), "accepted");
  EXPECT_NE(message("naive", {1, 2000000000, 2}).find("too many"), std::string::npos);
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
