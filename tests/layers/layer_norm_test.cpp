#include "layers/layer_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "tests/support/finite_difference.h"
#include "tests/support/halves.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::random_values;

// Layer norm of rows in double, as PyTorch documents it.
struct Naive {
  std::vector<double> y, dx, dweight, dbias;

  Naive(std::span<const float> x, std::span<const float> dy, std::span<const float> weight,
        std::span<const float> bias)
      : y(x.size()), dx(x.size()), dweight(weight.size()), dbias(weight.size()) {
    const std::size_t features = weight.size();
    const auto n = static_cast<double>(features);
    for (std::size_t row = 0; row < x.size(); row += features) {
      double mean = 0, variance = 0, g_sum = 0, g_xhat = 0;
      for (std::size_t c = 0; c < features; ++c) mean += static_cast<double>(x[row + c]) / n;
      for (std::size_t c = 0; c < features; ++c)
        variance += std::pow(static_cast<double>(x[row + c]) - mean, 2) / n;
      const double rstd = 1 / std::sqrt(variance + 1e-5);
      std::vector<double> xhat(features), g(features);
      for (std::size_t c = 0; c < features; ++c) {
        xhat[c] = (static_cast<double>(x[row + c]) - mean) * rstd;
        y[row + c] = xhat[c] * static_cast<double>(weight[c]) + static_cast<double>(bias[c]);
        g[c] = static_cast<double>(dy[row + c]) * static_cast<double>(weight[c]);
        g_sum += g[c];
        g_xhat += g[c] * xhat[c];
        dweight[c] += static_cast<double>(dy[row + c]) * xhat[c];
        dbias[c] += static_cast<double>(dy[row + c]);
      }
      for (std::size_t c = 0; c < features; ++c)
        dx[row + c] = rstd * (g[c] - g_sum / n - xhat[c] * g_xhat / n);
    }
  }
};

class LayerNormTest : public testing::TestWithParam<Shape> {};

TEST_P(LayerNormTest, MatchesTheFormulaInDouble) {
  const Shape shape = GetParam();
  auto layer = planned<LayerNorm>(shape, {}, shape.last());
  auto x = random_values(shape.elements(), 1);
  for (float& value : x) value = 2 * value + 1;
  const auto dy = random_values(shape.elements(), 2);
  const Naive naive(x, dy, layer.weights(0), layer.weights(1));
  EXPECT_LT(test::relative_error(layer.forward(x), naive.y), tolerance::kLayerNorm);
  EXPECT_LT(test::relative_error(layer.backward(dy), naive.dx), tolerance::kLayerNorm);
  EXPECT_LT(test::relative_error(layer.gradients(0), naive.dweight), tolerance::kLayerNorm);
  EXPECT_LT(test::relative_error(layer.gradients(1), naive.dbias), tolerance::kLayerNorm);
  const auto once = layer.all_gradients();
  layer.backward(dy, GradientMode::kAdd);
  for (std::size_t i = 0; i < once.size(); ++i) {
    for (std::size_t j = 0; j < once[i].size(); ++j) EXPECT_EQ(layer.gradients(i)[j], 2 * once[i][j]);
  }
}

TEST_P(LayerNormTest, ThreadsChangeNoBit) {
  const Shape shape = GetParam();
  auto one = planned<LayerNorm>(shape, {.threads = 1}, shape.last());
  auto two = planned<LayerNorm>(shape, {.threads = 2}, shape.last());
  const auto x = random_values(shape.elements(), 3), dy = random_values(shape.elements(), 4);
  EXPECT_TRUE(test::same_bits(one.forward(x), two.forward(x)));
  EXPECT_TRUE(test::same_bits(one.backward(dy), two.backward(dy)));
  for (std::size_t i = 0; i < 2; ++i) EXPECT_TRUE(test::same_bits(one.gradients(i), two.gradients(i)));
}

TEST_P(LayerNormTest, HalvesMayRunApart) {
  const Shape shape = GetParam();
  test::expect_same_halves([&] { return std::make_unique<LayerNorm>(shape.last()); }, shape,
                           random_values(shape.elements(), 5), random_values(shape.elements(), 6));
}

// Features around the tiles, rows around a chunk.
INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormTest,
                         testing::Values(Shape{3, 2}, Shape{33, 5}, Shape{4, 9, 16}, Shape{2, 32, 35},
                                         Shape{5, 13, 256}));

TEST(LayerNorm, MatchesDifferences) {
  auto layer = planned<LayerNorm>(Shape{2, 3, 7}, {}, 7);
  EXPECT_LT(test::gradient_error(layer, random_values(42, 7)), tolerance::kFiniteDifference);
}

// A naive E[x^2] - E[x]^2 in fp32 would lose everything here.
TEST(LayerNorm, HoldsForAMeanFarFromZero) {
  const Shape shape{8, 64};
  auto layer = planned<LayerNorm>(shape, {}, 64);
  auto x = random_values(shape.elements(), 8);
  for (float& value : x) value += 4096;
  const Naive naive(x, x, layer.weights(0), layer.weights(1));
  EXPECT_LT(test::relative_error(layer.forward(x), naive.y), tolerance::kFarMean);
}

TEST(LayerNorm, NamesWrongShapes) {
  LayerNorm layer(16);
  try {
    layer.plan(Device::host(), 1, {2, 4, 8});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("layer norm 16"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("2x4x8"), std::string::npos) << error.what();
  }
  EXPECT_THROW(LayerNorm(0), std::invalid_argument);
  EXPECT_EQ(layer.parameters()[0].decay, Decay::kNo);
  EXPECT_EQ(layer.parameters()[1].decay, Decay::kNo);
}

}  // namespace
}  // namespace pipeoptim
