// Non-finite gradients skip a step; the norm is known and clips.
#include <gtest/gtest.h>

#include <limits>

#include "tests/optim/optimizer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

class Guard : public testing::TestWithParam<std::string> {};

TEST_P(Guard, SkipsAndNamesTheFirstBadRange) {
  OptimizerRun run(lively_config(GetParam()), uneven_arena());
  run.set_gradients(normal_values(20011, 0));
  run.update(0.01f);
  EXPECT_EQ(run.status().last_bad_range, -1);
  const auto weights = run.weights(), slots = run.all_slots();
  const float norm = run.status().gradient_norm;
  struct Bad {
    std::size_t element;
    float value;
    int range;
  };
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<Bad> cases = {{0, NAN, 0},    {9000, inf, 0},  {9001, -inf, 1}, {9049, NAN, 1},
                                  {9050, NAN, 2}, {16383, inf, 2}, {20010, NAN, 2}};
  std::int64_t skipped = 0;
  for (const Bad& bad : cases) {
    auto gradients = normal_values(20011, 1);
    gradients[bad.element] = bad.value;
    gradients[20010] = inf;  // the last one is not the first one
    run.set_gradients(gradients);
    run.update(0.01f);
    EXPECT_TRUE(same_bits(run.weights(), weights)) << bad.element;
    EXPECT_TRUE(same_bits(run.all_slots(), slots)) << bad.element;
    const OptimizerStatus status = run.status();
    EXPECT_EQ(status.skipped, ++skipped);
    EXPECT_EQ(status.steps, 1);
    EXPECT_EQ(status.last_bad_range, bad.range) << bad.element;
    EXPECT_EQ(status.gradient_norm, norm) << "stays that of the last completed update";
  }
}

// A run in which a step was skipped equals one in which it never came.
TEST_P(Guard, LeavesNoTrace) {
  OptimizerRun skipping(lively_config(GetParam()), uneven_arena());
  OptimizerRun plain(lively_config(GetParam()), uneven_arena());
  for (std::uint32_t step = 0; step < 4; ++step) {
    const auto gradients = normal_values(20011, step);
    auto bad = gradients;
    bad[step * 5000] = NAN;
    skipping.set_gradients(bad);
    skipping.update(0.01f);
    skipping.set_gradients(gradients);
    skipping.update_predict(0.01f, {0.01f});
    plain.set_gradients(gradients);
    plain.update_predict(0.01f, {0.01f});
  }
  EXPECT_TRUE(same_bits(skipping.weights(), plain.weights()));
  EXPECT_TRUE(same_bits(skipping.predicted(), plain.predicted()));
  EXPECT_EQ(skipping.status().steps, 4);
  EXPECT_EQ(skipping.status().skipped, 4);
}

INSTANTIATE_TEST_SUITE_P(All, Guard, testing::ValuesIn(all_rules()),
                         [](const auto& tested) { return rule_test_name(tested.param); });

TEST(GradientNorm, IsThatOfTheWholeArena) {
  OptimizerRun run({.rule = "sgd"}, uneven_arena());
  const auto gradients = normal_values(20011, 5, 0.3f);
  double sum = 0;
  for (const float g : gradients) sum += static_cast<double>(g) * static_cast<double>(g);
  run.set_gradients(gradients);
  run.update(0.01f);
  EXPECT_NEAR(run.status().gradient_norm, std::sqrt(sum), tolerance::kGradientNorm * std::sqrt(sum));
}

// Squares of large gradients overflow in fp32; the gradient is finite nevertheless.
TEST(GradientNorm, OfHugeGradientsIsFiniteAndDoesNotSkip) {
  OptimizerRun run({.rule = "sgd", .clip_norm = 1}, {.elements = 100, .groups = {}, .names = {}});
  run.set_gradients(std::vector<float>(100, 1e25f));
  run.update(1);
  EXPECT_EQ(run.status().skipped, 0);
  EXPECT_NEAR(run.status().gradient_norm, 1e26, tolerance::kGradientNorm * 1e26);
  EXPECT_NEAR(run.slot(0)[0], 0.1, tolerance::kGradientNorm);
}

TEST(Clipping, ScalesOnlyAboveTheLimit) {
  const OptimizerArena arena{.elements = 4, .groups = {}, .names = {}};
  OptimizerRun clipped({.rule = "sgd", .clip_norm = 5}, arena);
  clipped.set_gradients({6, 0, 8, 0});  // norm 10
  clipped.update(0.1f);
  EXPECT_EQ(clipped.status().gradient_norm, 10) << "before clipping";
  EXPECT_NEAR(clipped.slot(0)[0], 3, 1e-6 * 3) << "torch adds 1e-6 to the norm";
  EXPECT_NEAR(clipped.slot(0)[2], 4, 1e-6 * 4) << "torch adds 1e-6 to the norm";
  clipped.set_gradients({0.5f, 0.25f, -1, 2});
  clipped.update(0.1f);
  EXPECT_TRUE(same_bits(clipped.slot(0), {0.5f, 0.25f, -1, 2})) << "untouched below the limit";
}

TEST(Guard, HandlesAnEmptyArena) {
  OptimizerRun run({.rule = "adamw"}, {.elements = 0, .groups = {}, .names = {}});
  run.update_predict(0.1f, {});
  EXPECT_EQ(run.status().steps, 1);
}

}  // namespace
}  // namespace pipeoptim::test
