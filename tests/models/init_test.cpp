#include "models/init.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace pipeoptim::test {
namespace {

constexpr std::int64_t kCount = 100000;

struct Moments {
  double mean = 0, deviation = 0;
};

Moments moments(const std::vector<float>& values) {
  double sum = 0, squares = 0;
  for (const double value : values) {
    sum += value;
    squares += value * value;
  }
  const double mean = sum / kCount;
  return {mean, std::sqrt(squares / kCount - mean * mean)};
}

TEST(Init, Constant) {
  EXPECT_EQ(initial_values({Initializer::Kind::kConstant, 3.0F}, {2, 2}, 0, 0), std::vector<float>(4, 3.0F));
}

// The mean of 1e5 draws of deviation s is off by s/316; four times that is exceeded once in 16000 seeds, and
// the seed is fixed.
TEST(Init, Uniform) {
  const auto values = initial_values({Initializer::Kind::kUniform, 0.5F}, {kCount}, 7, 3);
  EXPECT_LE(*std::max_element(values.begin(), values.end()), 0.5F);
  EXPECT_GE(*std::min_element(values.begin(), values.end()), -0.5F);
  const Moments found = moments(values);
  const double deviation = 0.5 / std::sqrt(3.0);
  EXPECT_NEAR(found.mean, 0, 4 * deviation / std::sqrt(kCount));
  EXPECT_NEAR(found.deviation, deviation, 4 * deviation / std::sqrt(kCount));
}

TEST(Init, Normal) {
  const auto values = initial_values({Initializer::Kind::kNormal, 0.1F}, {kCount}, 7, 3);
  const Moments found = moments(values);
  EXPECT_NEAR(found.mean, 0, 4 * 0.1 / std::sqrt(kCount));
  EXPECT_NEAR(found.deviation, 0.1, 4 * 0.1 / std::sqrt(kCount));
  const auto beyond =
      std::count_if(values.begin(), values.end(), [](float value) { return std::abs(value) > 0.2F; });
  EXPECT_NEAR(static_cast<double>(beyond) / kCount, 0.0455, 0.003);  // two deviations
}

TEST(Init, PartsAreThoseOfTheWhole) {
  for (const auto kind : {Initializer::Kind::kUniform, Initializer::Kind::kNormal}) {
    const Initializer initializer{kind, 0.5F};
    const auto whole = initial_values(initializer, {6, 4}, 7, 3);
    const auto part = initial_values(initializer, {2, 4}, 7, 3, 12);
    EXPECT_EQ(part, std::vector<float>(whole.begin() + 12, whole.begin() + 20));
  }
}

TEST(Init, DependsOnSeedAndParameter) {
  const Initializer uniform{Initializer::Kind::kUniform, 1.0F};
  const auto values = initial_values(uniform, {10}, 1, 2);
  EXPECT_EQ(values, initial_values(uniform, {2, 5}, 1, 2));
  EXPECT_NE(values, initial_values(uniform, {10}, 2, 2));
  EXPECT_NE(values, initial_values(uniform, {10}, 1, 3));
}

}  // namespace
}  // namespace pipeoptim::test
