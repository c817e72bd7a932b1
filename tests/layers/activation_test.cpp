#include "layers/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numbers>

#include "tests/support/finite_difference.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::PlannedLayer;

struct Case {
  const char* name;
  std::function<LayerPtr()> make;
  double (*value)(double);
  double (*slope)(double);
};

double phi(double x) { return 0.5 * (1 + std::erf(x / std::numbers::sqrt2)); }
double gelu_tanh_inner(double x) { return std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x); }

const Case kCases[] = {
    {"relu", [] { return std::make_unique<ReLU>(); }, [](double x) { return x > 0 ? x : 0; },
     [](double x) { return x > 0 ? 1.0 : 0.0; }},
    {"tanh", [] { return std::make_unique<Tanh>(); }, [](double x) { return std::tanh(x); },
     [](double x) { return 1 - std::tanh(x) * std::tanh(x); }},
    {"sigmoid", [] { return std::make_unique<Sigmoid>(); }, [](double x) { return 1 / (1 + std::exp(-x)); },
     [](double x) { return std::exp(-x) / ((1 + std::exp(-x)) * (1 + std::exp(-x))); }},
    {"gelu", [] { return std::make_unique<GELU>(); }, [](double x) { return x * phi(x); },
     [](double x) { return phi(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }},
    {"gelu_tanh", [] { return std::make_unique<GELU>(GeluForm::kTanh); },
     [](double x) { return 0.5 * x * (1 + std::tanh(gelu_tanh_inner(x))); },
     [](double x) {
       const double t = std::tanh(gelu_tanh_inner(x));
       const double inner = std::sqrt(2 / std::numbers::pi) * (1 + 3 * 0.044715 * x * x);
       return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner;
     }},
};

class ActivationTest : public testing::TestWithParam<Case> {};

TEST_P(ActivationTest, MatchesItsFormula) {
  const Shape shape{5, 7, 3, 11};
  PlannedLayer layer(GetParam().make(), shape);
  EXPECT_EQ(layer.plan().output, shape);
  const auto x = test::random_values(shape.elements(), 1, 2);
  const auto dy = test::random_values(shape.elements(), 2);
  std::vector<double> y;
  std::vector<double> dx;
  for (std::size_t i = 0; i < x.size(); ++i) {
    y.push_back(GetParam().value(static_cast<double>(x[i])));
    dx.push_back(static_cast<double>(dy[i]) * GetParam().slope(static_cast<double>(x[i])));
  }
  EXPECT_LT(test::relative_error(layer.forward(x), y), tolerance::kElementwise);
  EXPECT_LT(test::relative_error(layer.backward(dy), dx), tolerance::kElementwise);
}

// Where a formula is put together of pieces.
TEST_P(ActivationTest, MatchesItsFormulaFromEndToEnd) {
  constexpr std::int64_t kSteps = 4096;
  std::vector<float> x;
  for (std::int64_t i = 0; i < kSteps; ++i) x.push_back(static_cast<float>(i - kSteps / 2) / 256);
  std::vector<double> y, dx;
  for (const float value : x) {
    y.push_back(GetParam().value(static_cast<double>(value)));
    dx.push_back(GetParam().slope(static_cast<double>(value)));
  }
  PlannedLayer layer(GetParam().make(), {1, kSteps});
  std::vector<double> sizes;
  for (const double value : y) sizes.push_back(std::max(1.0, std::abs(value)));
  EXPECT_LT(test::largest_error(layer.forward(x), y, sizes), tolerance::kElementwise);
  EXPECT_LT(test::relative_error(layer.backward(std::vector<float>(kSteps, 1.0F)), dx),
            tolerance::kElementwise);
}

TEST_P(ActivationTest, MatchesDifferences) {
  PlannedLayer layer(GetParam().make(), {4, 10});
  auto x = test::random_values(40, 3);
  for (float& value : x) value += value < 0 ? -0.1F : 0.1F;  // away from relu's kink
  EXPECT_LT(test::gradient_error(layer, x), tolerance::kFiniteDifference);
}

TEST_P(ActivationTest, HoldsForTheExtremesAndKeepsNaN) {
  PlannedLayer layer(GetParam().make(), {1, 5});
  const auto y = layer.forward({-100, 100, -0.0F, PlannedLayer::kPoison, 30});
  for (const std::size_t i : {0, 1, 2, 4}) {
    EXPECT_TRUE(std::isfinite(y[i])) << i;
  }
  EXPECT_TRUE(std::isnan(y[3])) << "a broken value must reach the loss";
}

TEST_P(ActivationTest, InPlaceAndThreadsChangeNoBit) {
  const Shape shape{3, 5, 8, 100};  // more than the loop that stays on one thread
  const auto x = test::random_values(shape.elements(), 4, 2);
  const auto dy = test::random_values(shape.elements(), 5);
  PlannedLayer apart(GetParam().make(), shape);
  const auto y = apart.forward(x);
  const auto dx = apart.backward(dy);
  PlannedLayer two(GetParam().make(), shape, {.threads = 2, .in_place = apart.plan().in_place});
  EXPECT_TRUE(test::same_bits(two.forward(x), y));
  EXPECT_TRUE(test::same_bits(two.backward(dy), dx));
}

INSTANTIATE_TEST_SUITE_P(All, ActivationTest, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace pipeoptim
