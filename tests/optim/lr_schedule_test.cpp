// Learning-rate schedules against their closed forms.
#include "optim/lr_schedule.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <stdexcept>

#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

void expect_rate(const LrSchedule& schedule, std::int64_t step, double expected) {
  EXPECT_NEAR(schedule.at(step), expected, tolerance::kLearningRate * expected) << "step " << step;
}

TEST(LrSchedule, IsConstantByDefault) {
  const LrSchedule schedule({.base_lr = 0.5});
  expect_rate(schedule, 0, 0.5);
  expect_rate(schedule, 1000000, 0.5);
}

TEST(LrSchedule, WarmsUpForEveryKind) {
  for (const std::string& kind : LrSchedule::kinds()) {
    const LrSchedule schedule({.kind = kind,
                               .base_lr = 0.8,
                               .warmup_steps = 4,
                               .total_steps = 100,
                               .step_size = 50,
                               .milestones = {60}});
    expect_rate(schedule, 0, 0.2);
    expect_rate(schedule, 1, 0.4);
    expect_rate(schedule, 3, 0.8);
    expect_rate(schedule, 4, 0.8);
  }
}

TEST(LrSchedule, Steps) {
  const LrSchedule schedule({.kind = "step", .base_lr = 1, .step_size = 10, .gamma = 0.5});
  expect_rate(schedule, 9, 1);
  expect_rate(schedule, 10, 0.5);
  expect_rate(schedule, 39, 0.125);
}

TEST(LrSchedule, StepsAtMilestones) {
  const LrSchedule schedule({.kind = "multi-step", .base_lr = 0.01, .gamma = 0.1, .milestones = {40, 60}});
  expect_rate(schedule, 39, 0.01);
  expect_rate(schedule, 40, 0.001);
  expect_rate(schedule, 60, 0.0001);
}

TEST(LrSchedule, Anneals) {
  const double pi = std::acos(-1.0);
  LrScheduleConfig config{
      .kind = "cosine", .base_lr = 1, .warmup_steps = 10, .total_steps = 110, .power = 2, .final_lr = 0.2};
  const LrSchedule cosine(config);
  config.kind = "linear";
  const LrSchedule linear(config);
  config.kind = "polynomial";
  const LrSchedule polynomial(config);
  for (const int step : {10, 35, 60, 99, 110}) {
    const double p = (step - 10) / 100.0;
    expect_rate(cosine, step, 0.2 + 0.8 * 0.5 * (1 + std::cos(pi * p)));
    expect_rate(linear, step, 1 - 0.8 * p);
    expect_rate(polynomial, step, 0.2 + 0.8 * (1 - p) * (1 - p));
  }
  for (const LrSchedule* schedule : {&cosine, &linear, &polynomial}) expect_rate(*schedule, 5000, 0.2);
}

TEST(LrSchedule, GivesTheRatesOfTheComingSteps) {
  const LrSchedule schedule({.kind = "linear", .base_lr = 1, .total_steps = 10});
  std::array<float, 3> rates{};
  schedule.next(4, rates);
  for (std::size_t i = 0; i < rates.size(); ++i)
    EXPECT_EQ(rates[i], schedule.at(4 + static_cast<std::int64_t>(i)));
}

TEST(LrSchedule, NamesWhatIsWrong) {
  const std::vector<std::pair<LrScheduleConfig, std::string>> wrong = {
      {{.kind = "cosin"}, "did you mean 'cosine'"},
      {{.base_lr = -1}, "base_lr"},
      {{.base_lr = std::nan("")}, "base_lr"},
      {{.warmup_steps = -1}, "warmup_steps"},
      {{.kind = "step"}, "step_size"},
      {{.kind = "step", .step_size = 1, .gamma = -1}, "gamma"},
      {{.kind = "multi-step", .milestones = {5, 5}}, "milestones"},
      {{.kind = "cosine"}, "total_steps"},
      {{.kind = "linear", .warmup_steps = 10, .total_steps = 10}, "total_steps"},
      {{.kind = "polynomial", .total_steps = 10, .power = 0}, "power"},
      {{.kind = "cosine", .total_steps = 10, .final_lr = -1}, "final_lr"}};
  for (const auto& [config, name] : wrong) {
    try {
      const LrSchedule schedule(config);
      ADD_FAILURE() << "accepted a wrong " << name;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(LrSchedule().at(-1), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim
