// Predictions from the weights' own steps, which may look back, and those that are none.
#include <gtest/gtest.h>

#include "tests/optim/optimizer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

TEST(Difference, ContinuesTheLastStepOrUndoesIt) {
  OptimizerRun run({.rule = "sgdm", .predictor = Predictor::kDifference}, plain_arena());
  run.set_gradients(normal_values(kFew, 1));
  run.update(0.01f);
  const auto before = run.weights();
  run.update(0.02f);
  const auto after = run.weights();
  for (const int distance : {3, -2, -kMaxHorizon}) {
    run.look(Lookahead::by_steps(distance));
    const auto predicted = run.predicted();
    for (std::size_t i = 0; i < after.size(); ++i) {
      ASSERT_EQ(predicted[i], after[i] + static_cast<float>(distance) * (after[i] - before[i])) << distance;
    }
  }
  run.look(Lookahead::by_steps(-1));
  const auto undone = run.predicted();
  for (std::size_t i = 0; i < after.size(); ++i) {
    ASSERT_NEAR(undone[i], before[i], tolerance::kPrediction);
  }
}

// PipeMare's average, in double; a skipped step is none.
TEST(Difference, FollowsTheAverageStep) {
  const double gamma = 0.75;
  OptimizerRun run({.rule = "adamw", .predictor = Predictor::kDifference, .step_decay = gamma},
                   plain_arena());
  std::vector<double> average(kFew);
  auto before = run.weights();
  for (std::uint32_t step = 0; step < 6; ++step) {
    auto gradients = normal_values(kFew, step);
    if (step == 3) gradients[0] = NAN;
    run.set_gradients(gradients);
    run.update_look(0.01f, Lookahead::by_steps(-5));
    const auto after = run.weights(), predicted = run.predicted();
    for (std::size_t i = 0; i < after.size(); ++i) {
      const double moved = static_cast<double>(after[i]) - static_cast<double>(before[i]);
      if (step != 3) average[i] = gamma * average[i] + (1 - gamma) * moved;
      ASSERT_NEAR(predicted[i], static_cast<double>(after[i]) - 5 * average[i], tolerance::kPrediction);
    }
    before = after;
  }
}

TEST(Difference, LooksBackInOnePassOrTwo) {
  OptimizerConfig config = lively_config("adan");
  config.predictor = Predictor::kDifference;
  OptimizerRun fused(config, uneven_arena()), apart(config, uneven_arena());
  for (std::uint32_t step = 0; step < 4; ++step) {
    for (OptimizerRun* run : {&fused, &apart}) run->set_gradients(normal_values(20011, step));
    fused.update_look(0.01f, Lookahead::by_steps(-7));
    apart.update(0.01f);
    apart.look(Lookahead::by_steps(-7));
    ASSERT_TRUE(same_bits(fused.predicted(), apart.predicted()));
    ASSERT_TRUE(same_bits(fused.all_slots(), apart.all_slots()));
  }
}

TEST(NoPrediction, CopiesAtAnyDistance) {
  OptimizerRun run({.rule = "sgdm", .predictor = Predictor::kNone}, plain_arena());
  run.set_gradients(normal_values(kFew, 1));
  run.update_predict(0.01f, {0.01f, 0.01f});
  EXPECT_TRUE(same_bits(run.predicted(), run.weights()));
  run.look(Lookahead::by_steps(-3));
  EXPECT_TRUE(same_bits(run.predicted(), run.weights()));
}

TEST(Lookahead, NeedsItsRatesWhereAPredictorReadsThem) {
  for (const Predictor predictor : {Predictor::kLinear, Predictor::kScheduleAware, Predictor::kGeometric}) {
    OptimizerRun run({.rule = "sgdm", .predictor = predictor}, plain_arena());
    EXPECT_THROW(run.look(Lookahead::by_steps(2)), std::invalid_argument);
    EXPECT_THROW(run.look(Lookahead::by_steps(-2)), std::invalid_argument);
    EXPECT_NO_THROW(run.look(Lookahead::by_steps(0)));
  }
  OptimizerRun run({.rule = "sgdm", .predictor = Predictor::kDifference}, plain_arena());
  EXPECT_THROW(run.look(Lookahead::by_steps(-kMaxHorizon - 1)), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim::test
