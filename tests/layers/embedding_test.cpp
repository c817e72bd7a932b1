#include "layers/embedding.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/finite_difference.h"
#include "tests/support/halves.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::random_values;

std::vector<float> random_tokens(std::int64_t count, std::int64_t vocabulary, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> tokens(static_cast<std::size_t>(count));
  for (float& token : tokens) token = static_cast<float>(random() % static_cast<unsigned>(vocabulary));
  return tokens;
}

struct Case {
  Shape input;
  EmbeddingOptions options;
};

class EmbeddingTest : public testing::TestWithParam<Case> {};

TEST_P(EmbeddingTest, LooksRowsUpAndSumsTheirGradients) {
  const auto& [shape, options] = GetParam();
  auto layer = planned<Embedding>(shape, {}, options);
  const auto features = static_cast<std::size_t>(options.features);
  EXPECT_EQ(layer.plan().output, (Shape{shape[0], shape[1], options.features}));
  const auto tokens = random_tokens(shape.elements(), options.vocabulary, 1);
  const auto y = layer.forward(tokens);
  const auto dy = random_values(layer.plan().output.elements(), 2);
  std::vector<double> sums(layer.weights(0).size()), sizes(sums.size(), 1e-30);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto row = static_cast<std::size_t>(tokens[i]) * features;
    for (std::size_t c = 0; c < features; ++c) {
      ASSERT_EQ(y[i * features + c], layer.weights(0)[row + c]);
      sums[row + c] += static_cast<double>(dy[i * features + c]);
      sizes[row + c] += std::abs(static_cast<double>(dy[i * features + c]));
    }
  }
  for (const float value : layer.backward(dy)) EXPECT_EQ(value, 0);
  EXPECT_LT(test::largest_error(layer.gradients(0), sums, sizes), tolerance::kFp32Product);
  const auto once = layer.gradients(0);
  layer.backward(dy, GradientMode::kAdd);
  for (double& sum : sums) sum *= 2;
  for (double& size : sizes) size *= 2;
  EXPECT_LT(test::largest_error(layer.gradients(0), sums, sizes), tolerance::kFp32Product);
  for (std::size_t i = 0; i < once.size(); ++i) {
    EXPECT_EQ(layer.gradients(0)[i] == 0, once[i] == 0);
  }
}

TEST_P(EmbeddingTest, ThreadsChangeNoBit) {
  const auto& [shape, options] = GetParam();
  auto one = planned<Embedding>(shape, {.threads = 1}, options);
  auto two = planned<Embedding>(shape, {.threads = 2}, options);
  const auto tokens = random_tokens(shape.elements(), options.vocabulary, 3);
  EXPECT_TRUE(test::same_bits(one.forward(tokens), two.forward(tokens)));
  const auto dy = random_values(one.plan().output.elements(), 4);
  one.backward(dy);
  two.backward(dy);
  EXPECT_TRUE(test::same_bits(one.gradients(0), two.gradients(0)));
}

TEST_P(EmbeddingTest, HalvesMayRunApart) {
  const auto& [shape, options] = GetParam();
  test::expect_same_halves([&options = options] { return std::make_unique<Embedding>(options); }, shape,
                           random_tokens(shape.elements(), options.vocabulary, 5),
                           random_tokens(shape.elements(), options.vocabulary, 6));
}

// Few tokens for many positions, and the reverse; widths around the tiles; positions around the scan's
// blocks.
INSTANTIATE_TEST_SUITE_P(Shapes, EmbeddingTest,
                         testing::Values(Case{{1, 1}, {1, 1}}, Case{{4, 33}, {7, 5}}, Case{{3, 64}, {2, 16}},
                                         Case{{2, 3}, {500, 35}}, Case{{5, 127}, {65, 24}}));

TEST(Embedding, TokensOutsideOfTheVocabularyBecomeTheNearest) {
  auto layer = planned<Embedding>(Shape{1, 5}, {}, EmbeddingOptions{.vocabulary = 3, .features = 2});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto y = layer.forward({-1, 3, 1e30F, nan, 1});
  const std::span<float> table = layer.weights(0);
  const std::size_t rows[] = {0, 2, 2, 0, 1};
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(y[2 * i], table[2 * rows[i]]);
    EXPECT_EQ(y[2 * i + 1], table[2 * rows[i] + 1]);
  }
  layer.backward({1, 10, 2, 20, 3, 30, 4, 40, 5, 50});
  EXPECT_EQ(layer.gradients(0), (std::vector<float>{5, 50, 5, 50, 5, 50}));
}

TEST(Embedding, NamesWrongNumbers) {
  EXPECT_THROW(Embedding({.vocabulary = 0, .features = 4}), std::invalid_argument);
  EXPECT_THROW(Embedding({.vocabulary = (1 << 24) + 1, .features = 4}), std::invalid_argument);
  EXPECT_THROW(Embedding({.vocabulary = 4, .features = 0}), std::invalid_argument);
  Embedding layer({.vocabulary = 65, .features = 8});
  try {
    layer.plan(Device::host(), 1, {2, 3, 4});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("embedding 65 x 8"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("2x3x4"), std::string::npos) << error.what();
  }
}

TEST(PositionEmbedding, AddsAndSums) {
  const Shape shape{3, 5, 20};
  for (const bool in_place : {false, true}) {
    auto layer = planned<PositionEmbedding>(shape, {.in_place = in_place},
                                            PositionEmbeddingOptions{.positions = 7, .features = 20});
    const auto x = random_values(shape.elements(), 1), dy = random_values(shape.elements(), 2);
    const auto y = layer.forward(x);
    std::vector<double> sums(7 * 20);
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(y[i], x[i] + layer.weights(0)[i % 100]);
      sums[i % 100] += static_cast<double>(dy[i]);
    }
    EXPECT_TRUE(test::same_bits(layer.backward(dy), dy));
    EXPECT_LT(test::relative_error(layer.gradients(0), sums), tolerance::kElementwise);
    const auto once = layer.gradients(0);
    layer.backward(dy, GradientMode::kAdd);
    for (std::size_t i = 0; i < once.size(); ++i) EXPECT_EQ(layer.gradients(0)[i], 2 * once[i]);
  }
}

TEST(PositionEmbedding, MatchesDifferences) {
  auto layer =
      planned<PositionEmbedding>(Shape{2, 3, 5}, {}, PositionEmbeddingOptions{.positions = 4, .features = 5});
  EXPECT_LT(test::gradient_error(layer, random_values(30, 3)), tolerance::kFiniteDifference);
  test::expect_same_halves(
      [] {
        return std::make_unique<PositionEmbedding>(PositionEmbeddingOptions{.positions = 4, .features = 5});
      },
      {2, 3, 5}, random_values(30, 4), random_values(30, 5));
}

TEST(PositionEmbedding, NamesWrongNumbers) {
  EXPECT_THROW(PositionEmbedding({.positions = 0, .features = 1}), std::invalid_argument);
  PositionEmbedding layer({.positions = 4, .features = 8});
  EXPECT_THROW(layer.plan(Device::host(), 1, {2, 4, 7}), std::invalid_argument);
  EXPECT_THROW(layer.plan(Device::host(), 1, {2, 8}), std::invalid_argument);
  try {
    layer.plan(Device::host(), 1, {2, 5, 8});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("at most 4 positions"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("2x5x8"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pipeoptim
