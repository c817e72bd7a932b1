// Simulated schedules against the closed forms of docs/methods.md.
#include "pipeline/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace pipeoptim {
namespace {

constexpr int kDepths[] = {1, 2, 3, 4, 8};

std::vector<StageCosts> equal_stages(const Schedule& schedule, const StageCosts& costs) {
  return std::vector<StageCosts>(schedule.stages.size(), costs);
}
std::vector<LinkCosts> free_links(const Schedule& schedule) {
  return std::vector<LinkCosts>(schedule.stages.size() - 1);
}

Simulation simulated(const std::string& method, const ScheduleRequest& request, const StageCosts& costs) {
  const Schedule schedule = make_schedule(method, request);
  return simulate(turns_of(schedule), equal_stages(schedule, costs), free_links(schedule));
}

int most_activations(const Simulation& simulation) {
  int most = 0;
  for (const SimulatedWorker& worker : simulation.workers) most = std::max(most, worker.activations);
  return most;
}

// Enough micro-batches for every order to reach its steady state.
std::vector<int> counts(int depth) { return {2 * depth, 3 * depth, 5 * depth + 1}; }

TEST(Bubble, OfGpipeAnd1f1bIsOneFillAndDrain) {
  for (const int depth : kDepths) {
    for (const int m : counts(depth)) {
      for (const char* method : {"gpipe", "1f1b"}) {
        const Simulation simulation = simulated(method, {depth, 1, m}, {2, 3, 1});
        EXPECT_DOUBLE_EQ(simulation.bubble(), (depth - 1) * (2 + 3 + 1)) << method << ", D = " << depth;
        EXPECT_DOUBLE_EQ(simulation.bubble() / simulation.makespan,
                         static_cast<double>(depth - 1) / (m + depth - 1));
      }
    }
  }
}

TEST(Bubble, OfInterleavedIsDividedByTheChunks) {
  for (const int depth : kDepths) {
    for (const int chunks : {2, 3, 4}) {
      for (const int groups : {2, 3, 5}) {
        // A chunk costs what a stage costs, divided by the chunks.
        const Simulation simulation = simulated(
            "interleaved", {.workers = depth, .microbatches_per_update = groups * depth, .chunks = chunks},
            {1, 2, 1});
        EXPECT_DOUBLE_EQ(simulation.bubble(), (depth - 1) * (1 + 2 + 1))
            << "D = " << depth << ", v = " << chunks;
      }
    }
  }
}

TEST(Bubble, OfZeroBubbleH1) {
  for (const int depth : kDepths) {
    for (const int m : counts(depth)) {
      const Simulation equal = simulated("zb-h1", {depth, 1, m}, {1, 1, 1});
      EXPECT_DOUBLE_EQ(equal.bubble(), depth - 1);
      EXPECT_EQ(most_activations(equal), depth);
      EXPECT_DOUBLE_EQ(simulated("zb-h1", {depth, 1, m}, {2, 3, 1}).bubble(), (depth - 1) * (2 + 3 - 1));
    }
  }
}

TEST(Bubble, OfZeroBubbleH2IsNothingAtEqualCosts) {
  for (const int depth : kDepths) {
    for (const int m : counts(depth)) {
      const Simulation simulation = simulated("zb-h2", {depth, 1, m}, {1, 1, 1});
      EXPECT_DOUBLE_EQ(simulation.bubble(), 0);
      EXPECT_LE(most_activations(simulation), 2 * depth - 1);
    }
  }
}

TEST(Bubble, OfZeroBubbleVIsNothingAtTheMemoryOf1f1b) {
  for (const int depth : kDepths) {
    for (const int m : counts(depth)) {
      const Simulation simulation = simulated("zb-v", {depth, 1, m}, {1, 1, 1});
      EXPECT_DOUBLE_EQ(simulation.bubble(), 0);
      EXPECT_LE(most_activations(simulation), 2 * depth) << "chunks of half a stage";
    }
  }
}

TEST(Bubble, OfAsynchronousOrdersDoesNotGrowWithTheMiniBatches) {
  for (const int depth : kDepths) {
    const double fill = (depth - 1) * 3;
    for (const int minibatches : {2 * depth, 10 * depth}) {
      EXPECT_DOUBLE_EQ(simulated("pipeoptim", {depth, minibatches, 1}, {1, 1, 1}).bubble(), fill);
    }
  }
}

TEST(ZeroBubbleAuto, KeepsToItsLimitAndIsNoWorseThanTheClosedForms) {
  for (const int depth : kDepths) {
    for (const int m : counts(depth)) {
      for (const ComputeCosts costs : {ComputeCosts{1, 1, 1}, {2, 3, 1}, {1, 1, 2}}) {
        for (const int limit : {1, depth, 2 * depth - 1, 3 * depth}) {
          const StageCosts stage{costs.forward, costs.backward_input, costs.backward_weights, 0};
          const Simulation simulation = simulated(
              "zb-auto",
              {.workers = depth, .microbatches_per_update = m, .costs = costs, .activation_limit = limit},
              stage);
          EXPECT_LE(most_activations(simulation), limit);
          for (const char* other : {"zb-h1", "zb-h2"}) {
            const Simulation fixed = simulated(other, {depth, 1, m}, stage);
            if (most_activations(fixed) > limit) continue;
            EXPECT_LE(simulation.bubble(), fixed.bubble()) << other << ", D = " << depth;
          }
        }
      }
    }
  }
}

TEST(Simulation, UpdatesAndLinksTakeTime) {
  const Schedule schedule = make_schedule("gpipe", {2, 1, 2});
  const std::vector<StageCosts> costs(2, {1, 1, 1, 4});
  const std::vector<LinkCosts> links(1, {10, 20});
  const Simulation simulation = simulate(turns_of(schedule), costs, links);
  // F0 ends at 1, F1 at 2; the link delivers at 11 and 21. Stage 1: F0 11-12, F1 21-22, B0 22-24, B1 24-26,
  // update 26-30. Its gradients arrive at 44 and 64: B0 44-46, B1 64-66, update 66-70.
  EXPECT_DOUBLE_EQ(simulation.workers[1].end, 30);
  EXPECT_DOUBLE_EQ(simulation.makespan, 70);
  EXPECT_DOUBLE_EQ(simulation.workers[0].busy, 2 + 4 + 4);
}

TEST(Simulation, SaysWhatWaitsForEver) {
  Turns turns{{{Op::kForward, 0, 0}, {Op::kBackward, 0, 0}}, {{Op::kForward, 1, 0}}};
  const std::vector<StageCosts> costs(2);
  const std::vector<LinkCosts> links(1);
  try {
    simulate(turns, costs, links);
    FAIL();
  } catch (const std::logic_error& error) {
    EXPECT_NE(std::string(error.what()).find("worker 0 waits for micro-batch 0 on stage 0"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(simulate(turns, costs, {}), std::invalid_argument);
}

TEST(Simulation, TakesThousandsOfStages) {
  const Simulation simulation = simulated("1f1b", {2000, 1, 400}, {1, 1, 1});
  EXPECT_DOUBLE_EQ(simulation.bubble(), 1999 * 3);
}

}  // namespace
}  // namespace pipeoptim
