// The three passes against each other, and the predictors against what they promise.
#include <gtest/gtest.h>

#include "tests/optim/optimizer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

using Case = std::tuple<std::string, Predictor>;

class Passes : public testing::TestWithParam<Case> {
 protected:
  OptimizerConfig config() const {
    OptimizerConfig config = lively_config(std::get<0>(GetParam()));
    config.predictor = std::get<1>(GetParam());
    config.clip_norm = 100;  // in effect for the gradients here (their norm is about 141)
    return config;
  }
};

std::vector<float> rising_rates(std::size_t horizon) {
  std::vector<float> rates;
  for (std::size_t i = 0; i < horizon; ++i) rates.push_back(0.01f + 0.003f * static_cast<float>(i));
  return rates;
}

TEST_P(Passes, FusedEqualsApartBitForBit) {
  OptimizerRun fused(config(), uneven_arena());
  OptimizerRun apart(config(), uneven_arena());
  std::uint32_t step = 0;
  for (const std::size_t horizon :
       {std::size_t{3}, std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{128}}) {
    const auto rates = rising_rates(horizon);
    for (OptimizerRun* run : {&fused, &apart}) {
      auto gradients = normal_values(20011, step);
      if (step == 2) gradients[12345] = INFINITY;  // a skipped step predicts from the old state
      run->set_gradients(gradients);
    }
    fused.update_predict(0.01f, rates);
    apart.update(0.01f);
    apart.predict(rates);
    ASSERT_TRUE(same_bits(fused.weights(), apart.weights())) << "horizon " << horizon;
    ASSERT_TRUE(same_bits(fused.all_slots(), apart.all_slots())) << "horizon " << horizon;
    ASSERT_TRUE(same_bits(fused.predicted(), apart.predicted())) << "horizon " << horizon;
    if (horizon == 0) {
      EXPECT_TRUE(same_bits(fused.predicted(), fused.weights()));
    }
    ++step;
  }
  EXPECT_EQ(fused.status().skipped, 1);
}

TEST_P(Passes, CopyBeforeTheFirstStep) {
  OptimizerRun run(config(), uneven_arena());
  const auto before = run.weights();
  run.predict(rising_rates(5));
  EXPECT_TRUE(same_bits(run.predicted(), before));
  std::vector<float> bad(20011, 0.5f);
  bad[3] = NAN;
  run.set_gradients(bad);
  run.set_weights(before);
  run.update_predict(0.01f, rising_rates(5));  // skipped: still no completed step
  EXPECT_TRUE(same_bits(run.predicted(), before));
  EXPECT_TRUE(same_bits(run.weights(), before));
}

TEST_P(Passes, LeaveWeightsAndStateAloneWhenTheyPredict) {
  OptimizerRun run(config(), uneven_arena());
  run.set_gradients(normal_values(20011, 1));
  run.update(0.01f);
  const auto weights = run.weights(), slots = run.all_slots();
  run.predict(rising_rates(4));
  EXPECT_TRUE(same_bits(run.weights(), weights));
  EXPECT_TRUE(same_bits(run.all_slots(), slots));
  EXPECT_EQ(run.status().steps, 1);
}

TEST_P(Passes, MayPredictInPlaceOnlyAtHorizonZero) {
  OptimizerRun run(config(), uneven_arena());
  Buffer<float> weights(Device::host(), 20011);
  const std::vector<float> rates = rising_rates(1);
  Optimizer& optimizer = run.optimizer();
  EXPECT_NO_THROW(optimizer.predict(run.stream(), weights.data(), weights.data(), {}));
  EXPECT_THROW(optimizer.predict(run.stream(), weights.data(), weights.data(), rates), std::invalid_argument);
  const auto far = rising_rates(kMaxHorizon + 1);
  Buffer<float> predicted(Device::host(), 20011);
  EXPECT_THROW(optimizer.predict(run.stream(), weights.data(), predicted.data(), far), std::invalid_argument);
  run.stream().synchronize();
}

std::string case_name(const testing::TestParamInfo<Case>& tested) {
  const char* const predictors[] = {"linear", "schedule_aware", "geometric"};
  return std::get<0>(tested.param) + "_" + predictors[static_cast<int>(std::get<1>(tested.param))];
}

INSTANTIATE_TEST_SUITE_P(All, Passes,
                         testing::Combine(testing::ValuesIn(optimizer_names()),
                                          testing::Values(Predictor::kLinear, Predictor::kScheduleAware,
                                                          Predictor::kGeometric)),
                         case_name);

constexpr std::int64_t kFew = 1000;
OptimizerArena plain_arena() { return {.elements = kFew, .groups = {}, .names = {}}; }

// Steps with gradients that are the same every time; compares the prediction with where they lead.
double largest_error(OptimizerRun& run, const std::vector<float>& rates, const std::vector<float>& coming) {
  run.predict(rates);
  const auto predicted = run.predicted();
  run.set_gradients(coming);
  for (const float rate : rates) run.update(rate);
  const auto arrived = run.weights();
  double largest = 0;
  for (std::size_t i = 0; i < arrived.size(); ++i) {
    largest =
        std::max(largest, std::abs(static_cast<double>(predicted[i]) - static_cast<double>(arrived[i])));
  }
  return largest;
}

// O4: a constant gradient makes Adam's linear prediction exact from the first step on.
TEST(Predictor, LinearIsExactForAdamUnderAConstantGradient) {
  for (const char* rule : {"adam", "adamw"}) {
    OptimizerRun run({.rule = rule}, plain_arena());
    const auto constant = normal_values(kFew, 3);
    run.set_gradients(constant);
    for (int step = 0; step < 5; ++step) {
      run.update(0.01f);
      EXPECT_LT(largest_error(run, std::vector<float>(3, 0.01f), constant), tolerance::kPrediction) << rule;
    }
  }
}

// O5: SGDM's momentum converges to the constant gradient's sum, and so does its linear prediction.
TEST(Predictor, LinearBecomesExactForMomentumUnderAConstantGradient) {
  OptimizerRun run({.rule = "sgdm", .momentum = 0.9}, plain_arena());
  const auto constant = normal_values(kFew, 3);
  run.set_gradients(constant);
  run.update(0.001f);
  const std::vector<float> rates(3, 0.001f);
  const double early = largest_error(run, rates, constant);
  for (int step = 0; step < 150; ++step) run.update(0.001f);
  const double late = largest_error(run, rates, constant);
  EXPECT_GT(early, 1e-3);
  EXPECT_LT(late, tolerance::kPrediction);
}

// O5: with zero gradients to come, the geometric predictor is exact for the momentum rules at any rates.
TEST(Predictor, GeometricIsExactForMomentumUnderZeroGradients) {
  for (const char* rule : {"sgd", "sgdm", "nesterov", "rmsprop"}) {
    OptimizerRun run({.rule = rule, .predictor = Predictor::kGeometric}, plain_arena());
    for (std::uint32_t step = 0; step < 4; ++step) {
      run.set_gradients(normal_values(kFew, step));
      run.update(0.01f);
    }
    const std::vector<float> zero(kFew, 0.0f);
    EXPECT_LT(largest_error(run, {0.01f, 0.02f, 0.005f, 0.04f}, zero), tolerance::kPrediction) << rule;
  }
}

// With equal rates the sum is the closed form lr (u - u^(s+1)) / (1 - u).
TEST(Predictor, GeometricHasTheClosedFormForMomentum) {
  OptimizerRun run({.rule = "sgdm", .momentum = 0.9, .predictor = Predictor::kGeometric}, plain_arena());
  run.set_gradients(normal_values(kFew, 1));
  run.update(0.01f);
  run.predict(std::vector<float>(6, 0.01f));
  const double travel = 0.01 * (0.9 - std::pow(0.9, 7)) / (1 - 0.9);
  const auto weights = run.weights(), momentum = run.slot(0), predicted = run.predicted();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    ASSERT_NEAR(predicted[i], static_cast<double>(weights[i]) - travel * static_cast<double>(momentum[i]),
                tolerance::kPrediction);
  }
}

// The loop of the contract, i = 1..s, in double.
TEST(Predictor, GeometricFollowsAdamsLoop) {
  for (const char* rule : {"adam", "adamw"}) {
    OptimizerConfig config = lively_config(rule);
    config.predictor = Predictor::kGeometric;
    OptimizerRun run(config, plain_arena());
    const int steps = 3;
    for (std::uint32_t step = 0; step < steps; ++step) {
      run.set_gradients(normal_values(kFew, step));
      run.update(0.01f);
    }
    const std::vector<float> rates = rising_rates(5);
    run.predict(rates);
    const auto weights = run.weights(), m = run.slot(0), v = run.slot(1), predicted = run.predicted();
    for (std::size_t e = 0; e < weights.size(); ++e) {
      double w = static_cast<double>(weights[e]);
      for (int i = 1; i <= 5; ++i) {
        const double lr = static_cast<double>(rates[static_cast<std::size_t>(i - 1)]);
        if (config.rule == "adamw") w -= lr * config.weight_decay * w;
        w -= lr / (1 - std::pow(config.beta1, steps + i)) * std::pow(config.beta1, i) *
             static_cast<double>(m[e]) /
             (std::sqrt(static_cast<double>(v[e]) / (1 - std::pow(config.beta2, steps + i))) + config.eps);
      }
      ASSERT_NEAR(predicted[e], w, tolerance::kPrediction) << rule;
    }
  }
}

TEST(Predictor, ScheduleAwareSumsTheComingRates) {
  OptimizerConfig config{.rule = "sgd", .predictor = Predictor::kScheduleAware};
  OptimizerRun run(config, plain_arena());
  run.set_gradients(normal_values(kFew, 1));
  run.update(0.01f);
  run.predict({0.01f, 0.02f, 0.03f});
  const auto weights = run.weights(), gradient = run.slot(0), predicted = run.predicted();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    ASSERT_NEAR(predicted[i], weights[i] - 0.06f * gradient[i], tolerance::kPrediction);
  }
}

}  // namespace
}  // namespace pipeoptim::test
