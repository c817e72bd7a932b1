// A step whose learning rates lie in memory gives the bits of one that was passed them: weights, predictions
// and state of every rule and predictor, on every backend.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tests/optim/optimizer_run.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

using Case = std::tuple<Backend, std::string, Predictor>;

class RepeatContract : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (device_count(std::get<0>(GetParam())) == 0) GTEST_SKIP() << "no CUDA device";
  }
};

// An optimizer that is called in either way.
class Side {
 public:
  Side(Device device, const OptimizerConfig& config)
      : device_(device),
        predictor_(config.predictor),
        optimizer_(make_optimizer(device, config, uneven_arena(), multiply_plainly)) {
    set(weights_, normal_values(kElements, 7));
  }

  void set_gradients(const std::vector<float>& values) { set(gradients_, values); }

  void update(float lr) { optimizer_->update(stream_, weights_.data(), gradients_.data(), lr); }
  void predict(const std::vector<float>& rates) {
    optimizer_->predict(stream_, weights_.data(), predicted_.data(), rates);
  }
  void update_predict(float lr, const std::vector<float>& rates) {
    optimizer_->update_predict(stream_, weights_.data(), gradients_.data(), lr, predicted_.data(), rates);
  }
  // Without `lr` no update, without `coming` no prediction.
  void repeat(std::optional<float> lr, const std::optional<std::vector<float>>& coming) {
    const Lookahead ahead = coming ? Lookahead(*coming) : Lookahead{};
    const StepRates numbers = make_step_rates(predictor_, lr.value_or(0), ahead);
    copy_from_host(rates_.data(), &numbers, sizeof(numbers), device_);
    RepeatedStep step{.weights = weights_.data(), .distance = ahead.distance, .rates = rates_.data()};
    if (lr) step.gradients = gradients_.data();
    if (coming) step.predicted = PredictedWeights(predicted_.data());
    optimizer_->repeat(stream_, step);
  }

  // Weights, predicted weights and state.
  std::vector<float> everything() {
    std::vector<const float*> arrays{weights_.data(), predicted_.data()};
    for (const auto& [name, values] : optimizer_->state()) arrays.push_back(values);
    std::vector<float> all(arrays.size() * kElements);
    stream_.synchronize();
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      copy_to_host(all.data() + i * kElements, arrays[i], kElements * sizeof(float), device_);
    }
    return all;
  }

 private:
  static constexpr std::size_t kElements = 20011;

  void set(Buffer<float>& to, const std::vector<float>& values) {
    stream_.synchronize();
    copy_from_host(to.data(), values.data(), values.size() * sizeof(float), device_);
  }

  Device device_;
  Predictor predictor_;
  Stream stream_{device_};
  std::unique_ptr<Optimizer> optimizer_;
  Buffer<float> weights_{device_, kElements}, gradients_{device_, kElements}, predicted_{device_, kElements};
  Buffer<StepRates> rates_{device_, 1};
};

TEST_P(RepeatContract, GivesTheBitsOfPassedRates) {
  const auto& [backend, rule, predictor] = GetParam();
  OptimizerConfig config = lively_config(rule);
  config.predictor = predictor;
  config.clip_norm = 100;
  Side passed({backend, 0}, config), repeated({backend, 0}, config);
  const std::vector<std::vector<float>> horizons = {{0.01F, 0.02F, 0.005F}, {}, {0.03F}, {0.02F, 0.001F}};
  for (std::uint32_t step = 0; step < horizons.size(); ++step) {
    const float lr = 0.01F * static_cast<float>(step + 1);
    auto gradients = normal_values(20011, step);
    if (step == 2) gradients[12345] = INFINITY;  // skipped
    for (Side* side : {&passed, &repeated}) side->set_gradients(gradients);
    passed.update_predict(lr, horizons[step]);
    repeated.repeat(lr, horizons[step]);
    ASSERT_TRUE(same_bits(repeated.everything(), passed.everything())) << "both, step " << step;
    passed.update(lr / 2);
    repeated.repeat(lr / 2, {});
    ASSERT_TRUE(same_bits(repeated.everything(), passed.everything())) << "update, step " << step;
    passed.predict(horizons[step]);
    repeated.repeat({}, horizons[step]);
    ASSERT_TRUE(same_bits(repeated.everything(), passed.everything())) << "prediction, step " << step;
  }
}

std::string case_name(const testing::TestParamInfo<Case>& tested) {
  const auto& [backend, rule, predictor] = tested.param;
  const char* const predictors[] = {"linear", "schedule_aware", "geometric", "difference", "none"};
  return backend_prefix(backend) + "_" + rule_test_name(rule) + "_" + predictors[static_cast<int>(predictor)];
}

INSTANTIATE_TEST_SUITE_P(All, RepeatContract,
                         testing::Combine(testing::ValuesIn(built_backends()), testing::ValuesIn(all_rules()),
                                          testing::Values(Predictor::kLinear, Predictor::kScheduleAware,
                                                          Predictor::kGeometric, Predictor::kDifference,
                                                          Predictor::kNone)),
                         case_name);

TEST(StepRates, AreRefusedLikeLookaheads) {
  EXPECT_THROW(make_step_rates(Predictor::kLinear, 0, Lookahead::by_steps(2)), std::invalid_argument);
  EXPECT_NO_THROW(make_step_rates(Predictor::kDifference, 0, Lookahead::by_steps(-2)));
  const std::vector<float> far(kMaxHorizon + 1);
  EXPECT_THROW(make_step_rates(Predictor::kLinear, 0, far), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim::test
