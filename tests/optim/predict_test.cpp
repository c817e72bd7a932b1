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
  const auto in_place = [&] { optimizer.predict(run.stream(), weights.data(), weights.data(), rates); };
  if (config().predictor == Predictor::kNone) {
    EXPECT_NO_THROW(in_place());
  } else {
    EXPECT_THROW(in_place(), std::invalid_argument);
  }
  const auto far = rising_rates(kMaxHorizon + 1);
  Buffer<float> predicted(Device::host(), 20011);
  EXPECT_THROW(optimizer.predict(run.stream(), weights.data(), predicted.data(), far), std::invalid_argument);
  run.stream().synchronize();
}

std::string case_name(const testing::TestParamInfo<Case>& tested) {
  const char* const predictors[] = {"linear", "schedule_aware", "geometric", "difference", "none"};
  return rule_test_name(std::get<0>(tested.param)) + "_" +
         predictors[static_cast<int>(std::get<1>(tested.param))];
}

INSTANTIATE_TEST_SUITE_P(All, Passes,
                         testing::Combine(testing::ValuesIn(all_rules()),
                                          testing::Values(Predictor::kLinear, Predictor::kScheduleAware,
                                                          Predictor::kGeometric, Predictor::kDifference,
                                                          Predictor::kNone)),
                         case_name);

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
  for (const char* rule : {"sgd", "sgdm", "sgdm-sc", "nesterov", "rmsprop", "adagrad", "lion"}) {
    OptimizerRun run({.rule = rule, .delay = 2, .predictor = Predictor::kGeometric}, plain_arena());
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

// Adam's loop of the contract, i = 1..s, in double, and those of its relatives: the first moment fades, the
// second one stays.
class FadingMomentum : public testing::TestWithParam<std::string> {
 protected:
  static constexpr int kSteps = 3;

  void SetUp() override {
    config_ = with_rule_defaults(config_);
    for (std::uint32_t step = 0; step < kSteps; ++step) {
      run_.set_gradients(normal_values(kFew, step));
      run_.update(0.01f);
    }
    for (int slot = 0; slot < run_.optimizer().slots(); ++slot) slots_.push_back(run_.slot(slot));
  }
  double slot(int index, std::size_t e) const {
    return static_cast<double>(slots_[static_cast<std::size_t>(index)][e]);
  }
  double mu(int t) const { return *config_.beta1 * (1 - 0.5 * std::pow(0.96, t * config_.momentum_decay)); }

  double adam(std::size_t e, int i) const {
    const double b1 = *config_.beta1, b2 = *config_.beta2;
    const double root = std::sqrt(slot(1, e) / (1 - std::pow(b2, kSteps + i))) + *config_.eps;
    double gain = 1 / (1 - std::pow(b1, kSteps + i));
    if (config_.rule == "nadam") {
      double mu_product = 1;
      for (int t = 1; t <= kSteps + i + 1; ++t) mu_product *= mu(t);
      gain = mu(kSteps + i + 1) / (1 - mu_product);
    }
    return gain * std::pow(b1, i) * slot(0, e) / root;
  }
  // The gradient falls from its last value to 0 in the first coming step.
  double adan(std::size_t e, int i) const {
    const double b1 = *config_.beta1, b2 = *config_.beta2;
    double differences = slot(2, e);
    for (int step = 1; step <= i; ++step) {
      differences = b2 * differences + (step == 1 ? (1 - b2) * (0 - slot(0, e)) : 0);
    }
    return (std::pow(b1, i) * slot(1, e) / (1 - std::pow(b1, kSteps + i)) +
            b2 * differences / (1 - std::pow(b2, kSteps + i))) /
           (std::sqrt(slot(3, e) / (1 - std::pow(config_.beta3, kSteps + i))) + *config_.eps);
  }

  OptimizerConfig config_ = [] {
    OptimizerConfig config = lively_config(GetParam());
    config.predictor = Predictor::kGeometric;
    return config;
  }();
  OptimizerRun run_{config_, plain_arena()};
  std::vector<std::vector<float>> slots_;
};

TEST_P(FadingMomentum, IsWhatGeometricFollows) {
  const std::vector<float> rates = rising_rates(5);
  run_.predict(rates);
  const auto weights = run_.weights(), predicted = run_.predicted();
  for (std::size_t e = 0; e < weights.size(); ++e) {
    double w = static_cast<double>(weights[e]);
    for (int i = 1; i <= 5; ++i) {
      const double lr = static_cast<double>(rates[static_cast<std::size_t>(i - 1)]);
      if (config_.rule == "adamw") w -= lr * config_.weight_decay * w;
      w -= lr * (config_.rule == "adan" ? adan(e, i) : adam(e, i));
      if (config_.rule == "adan") w /= 1 + lr * config_.weight_decay;
    }
    ASSERT_NEAR(predicted[e], w, tolerance::kPrediction);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FadingMomentum, testing::Values("adam", "adamw", "nadam", "adan"),
                         [](const auto& tested) { return tested.param; });

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
