#include "layers/batch_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/finite_difference.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::PlannedLayer;

// Batch norm of {rows, channels} in double, as PyTorch documents it.
struct Naive {
  std::vector<double> y, dx, dweight, dbias, mean, unbiased;

  Naive(std::span<const float> x, std::span<const float> dy, std::span<const float> weight,
        std::span<const float> bias, bool relu)
      : y(x.size()), dx(x.size()) {
    const std::size_t channels = weight.size();
    const std::size_t rows = x.size() / channels;
    const auto n = static_cast<double>(rows);
    for (std::size_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (std::size_t r = 0; r < rows; ++r) sum += static_cast<double>(x[r * channels + c]);
      double squares = 0;
      for (std::size_t r = 0; r < rows; ++r)
        squares += std::pow(static_cast<double>(x[r * channels + c]) - sum / n, 2);
      mean.push_back(sum / n);
      unbiased.push_back(squares / (n - 1));
      const double rstd = 1 / std::sqrt(squares / n + 1e-5);
      double g_sum = 0;
      double g_xhat = 0;
      std::vector<double> g(rows);
      std::vector<double> xhat(rows);
      for (std::size_t r = 0; r < rows; ++r) {
        const std::size_t i = r * channels + c;
        xhat[r] = (static_cast<double>(x[i]) - sum / n) * rstd;
        y[i] = xhat[r] * static_cast<double>(weight[c]) + static_cast<double>(bias[c]);
        g[r] = relu && y[i] <= 0 ? 0 : static_cast<double>(dy[i]);
        if (relu && y[i] < 0) y[i] = 0;
        g_sum += g[r];
        g_xhat += g[r] * xhat[r];
      }
      for (std::size_t r = 0; r < rows; ++r) {
        dx[r * channels + c] =
            static_cast<double>(weight[c]) * rstd * (g[r] - g_sum / n - xhat[r] * g_xhat / n);
      }
      dweight.push_back(g_xhat);
      dbias.push_back(g_sum);
    }
  }
};

struct Case {
  Shape shape;
  Activation activation;
};

class BatchNormTest : public testing::TestWithParam<Case> {};

TEST_P(BatchNormTest, MatchesTheFormulaInDouble) {
  const auto& [shape, activation] = GetParam();
  auto layer = planned<BatchNorm2d>(shape, {}, shape.last(), BatchNormOptions{.activation = activation});
  auto x = test::random_values(shape.elements(), 1);
  for (float& value : x) value = 2 * value + 1;
  const auto dy = test::random_values(shape.elements(), 2);
  const Naive naive(x, dy, layer.weights(0), layer.weights(1), activation == Activation::kRelu);

  EXPECT_LT(test::relative_error(layer.forward(x), naive.y), tolerance::kBatchNorm);
  EXPECT_LT(test::relative_error(layer.backward(dy), naive.dx), tolerance::kBatchNorm);
  EXPECT_LT(test::relative_error(layer.gradients(0), naive.dweight), tolerance::kBatchNorm);
  EXPECT_LT(test::relative_error(layer.gradients(1), naive.dbias), tolerance::kBatchNorm);
  std::vector<double> mean;
  std::vector<double> variance;
  for (std::size_t c = 0; c < naive.mean.size(); ++c) {
    mean.push_back(0.1 * naive.mean[c]);
    variance.push_back(0.9 + 0.1 * naive.unbiased[c]);
  }
  EXPECT_LT(test::relative_error(layer.states(0), mean), tolerance::kBatchNorm);
  EXPECT_LT(test::relative_error(layer.states(1), variance), tolerance::kBatchNorm);

  const auto once = layer.all_gradients();
  layer.backward(dy, GradientMode::kAdd);
  for (std::size_t i = 0; i < once.size(); ++i) {
    for (std::size_t j = 0; j < once[i].size(); ++j) {
      EXPECT_EQ(layer.gradients(i)[j], 2 * once[i][j]);
    }
  }
}

TEST_P(BatchNormTest, EvaluationReadsTheRunningStatisticsAndLeavesThem) {
  const auto& [shape, activation] = GetParam();
  auto layer = planned<BatchNorm2d>(shape, {}, shape.last(), BatchNormOptions{.activation = activation});
  const auto channels = static_cast<std::size_t>(shape.last());
  const auto before = test::random_values(shape.last(), 3);
  std::copy(before.begin(), before.end(), layer.states(0).begin());
  for (float& value : layer.states(1)) value = 2.5F;
  const auto x = test::random_values(shape.elements(), 4);
  std::vector<double> y;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t c = i % channels;
    const double value = (static_cast<double>(x[i]) - static_cast<double>(before[c])) /
                             std::sqrt(2.5 + 1e-5) * static_cast<double>(layer.weights(0)[c]) +
                         static_cast<double>(layer.weights(1)[c]);
    y.push_back(activation == Activation::kRelu && value < 0 ? 0 : value);
  }
  EXPECT_LT(test::relative_error(layer.forward(x, Mode::kEvaluation), y), tolerance::kBatchNorm);
  EXPECT_TRUE(test::same_bits(layer.states(0), before));
}

TEST_P(BatchNormTest, ThreadsChangeNoBit) {
  const auto& [shape, activation] = GetParam();
  const BatchNormOptions options{.activation = activation};
  auto one = planned<BatchNorm2d>(shape, {.threads = 1}, shape.last(), options);
  auto two = planned<BatchNorm2d>(shape, {.threads = 2}, shape.last(), options);
  const auto x = test::random_values(shape.elements(), 5);
  const auto dy = test::random_values(shape.elements(), 6);
  EXPECT_TRUE(test::same_bits(one.forward(x), two.forward(x)));
  EXPECT_TRUE(test::same_bits(one.backward(dy), two.backward(dy)));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(test::same_bits(one.gradients(i), two.gradients(i)));
    EXPECT_TRUE(test::same_bits(one.states(i), two.states(i)));
  }
}

// One row above and below a chunk, channel counts around the tile.
INSTANTIATE_TEST_SUITE_P(
    Shapes, BatchNormTest,
    testing::Values(Case{{8, 5}, Activation::kNone}, Case{{2, 3, 5, 16}, Activation::kRelu},
                    Case{{257, 17}, Activation::kRelu}, Case{{4, 8, 8, 35}, Activation::kNone},
                    Case{{3, 20, 19, 1}, Activation::kRelu}, Case{{2, 16, 16, 64}, Activation::kRelu}));

TEST(BatchNorm, MatchesDifferences) {
  auto layer = planned<BatchNorm2d>(Shape{3, 2, 3, 4}, {}, 4);
  for (float& value : layer.weights(0)) value += 1;
  EXPECT_LT(test::gradient_error(layer, test::random_values(72, 7)), tolerance::kFiniteDifference);
}

// A naive E[x^2] - E[x]^2 in fp32 would lose everything here.
TEST(BatchNorm, HoldsForAMeanFarFromZero) {
  const Shape shape{64, 8, 8, 3};
  auto layer = planned<BatchNorm2d>(shape, {}, 3);
  auto x = test::random_values(shape.elements(), 8);
  for (float& value : x) value += 4096;
  const Naive naive(x, x, layer.weights(0), layer.weights(1), false);
  layer.forward(x);
  for (std::size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(layer.states(1)[c], 0.9 + 0.1 * naive.unbiased[c], 1e-4 * naive.unbiased[c]);
  }
}

TEST(BatchNorm, WorksWithoutAnInputGradient) {
  const Shape shape{6, 3};
  auto layer = planned<BatchNorm2d>(shape, {}, 3);
  const auto dy = test::random_values(18, 9);
  layer.forward(test::random_values(18, 10));
  layer.backward(dy);
  const auto with = layer.all_gradients();
  layer.wants_input_gradient = false;
  layer.backward(dy);
  EXPECT_TRUE(test::same_bits(layer.gradients(0), with[0]));
  EXPECT_TRUE(test::same_bits(layer.gradients(1), with[1]));
}

TEST(BatchNorm, NamesWrongShapes) {
  BatchNorm2d layer(16);
  try {
    layer.plan(Device::host(), 1, {2, 4, 4, 8});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("batch norm 16"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("2x4x4x8"), std::string::npos) << error.what();
  }
  EXPECT_THROW(layer.plan(Device::host(), 1, {2, 4, 16}), std::invalid_argument);
  EXPECT_THROW(BatchNorm2d(0), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim
