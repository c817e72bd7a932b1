#include "layers/softmax_cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/planned_layer.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

struct Result {
  double loss = -1;
  std::int32_t correct = -1;
  std::vector<float> gradient;
};

Result run(const Loss& loss, const Shape& shape, const std::vector<float>& logits,
           const std::vector<std::int32_t>& labels, float scale = 1, int threads = 1, bool backward = true) {
  Stream stream(Device::host(), {.threads = threads});
  Memory workspace(Device::host(), loss.workspace_bytes(shape));
  Result result;
  result.gradient.assign(logits.size(), std::numeric_limits<float>::quiet_NaN());
  loss.run({.stream = stream,
            .logits = {logits.data(), shape},
            .labels = labels.data(),
            .logits_gradient = {backward ? result.gradient.data() : nullptr, shape},
            .loss_sum = &result.loss,
            .correct = &result.correct,
            .scale = scale,
            .workspace = workspace.data()});
  stream.synchronize();
  return result;
}

struct Naive {
  double loss = 0;
  std::int32_t correct = 0;
  std::vector<double> gradient;
  Naive(const Shape& shape, const std::vector<float>& logits, const std::vector<std::int32_t>& labels,
        double smoothing, double scale) {
    const auto classes = static_cast<std::size_t>(shape[1]);
    for (std::size_t row = 0; row < labels.size(); ++row) {
      const float* x = logits.data() + row * classes;
      double sum = 0;
      std::size_t best = 0;
      const auto largest = static_cast<double>(*std::max_element(x, x + classes));
      for (std::size_t c = 0; c < classes; ++c) {
        sum += std::exp(static_cast<double>(x[c]) - largest);
        if (x[c] > x[best]) best = c;
      }
      const bool counts = labels[row] >= 0;
      if (counts && best == static_cast<std::size_t>(labels[row])) ++correct;
      for (std::size_t c = 0; c < classes; ++c) {
        const double q = (counts && c == static_cast<std::size_t>(labels[row]) ? 1 - smoothing : 0) +
                         smoothing / static_cast<double>(classes);
        const double log_p = static_cast<double>(x[c]) - largest - std::log(sum);
        if (counts) loss -= q * log_p;
        gradient.push_back(counts ? (std::exp(log_p) - q) * scale : 0);
      }
    }
  }
};

class SoftmaxTest : public testing::TestWithParam<std::tuple<Shape, double>> {};

TEST_P(SoftmaxTest, MatchesTheFormulaInDouble) {
  const auto& [shape, smoothing] = GetParam();
  const auto logits = test::random_values(shape.elements(), 1, 3);
  std::vector<std::int32_t> labels;
  for (std::int64_t row = 0; row < shape[0]; ++row) {
    labels.push_back(row % 5 == 3 ? -1 : static_cast<std::int32_t>(row * 7 % shape[1]));  // some padding
  }
  const float scale = 1.0F / static_cast<float>(shape[0]);
  const SoftmaxCrossEntropy loss(smoothing);
  const Result result = run(loss, shape, logits, labels, scale);
  const Naive naive(shape, logits, labels, smoothing, static_cast<double>(scale));
  EXPECT_NEAR(result.loss, naive.loss, tolerance::kSoftmax * std::max(1.0, naive.loss));
  EXPECT_EQ(result.correct, naive.correct);
  const std::vector<double> scales(naive.gradient.size(), static_cast<double>(scale));
  EXPECT_LT(test::largest_error(result.gradient, naive.gradient, scales), tolerance::kSoftmax);

  const Result two = run(loss, shape, logits, labels, scale, 2);
  EXPECT_EQ(two.loss, result.loss);
  EXPECT_TRUE(test::same_bits(two.gradient, result.gradient));
  const Result evaluation = run(loss, shape, logits, labels, scale, 1, false);
  EXPECT_EQ(evaluation.loss, result.loss);
  EXPECT_EQ(evaluation.correct, result.correct);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SoftmaxTest,
                         testing::Combine(testing::Values(Shape{1, 2}, Shape{37, 10}, Shape{64, 100},
                                                          Shape{5, 1}),
                                          testing::Values(0.0, 0.1)));

TEST(SoftmaxCrossEntropy, PaddingRecordsChangeNothing) {
  const auto logits = test::random_values(8 * 10, 2);
  const std::vector<std::int32_t> labels = {1, 2, 3, 4, 5, -1, -1, -100};
  const SoftmaxCrossEntropy loss;
  const Result padded = run(loss, {8, 10}, logits, labels, 0.2F);
  const std::vector<float> real(logits.begin(), logits.begin() + 50);
  const Result alone = run(loss, {5, 10}, real, {1, 2, 3, 4, 5}, 0.2F);
  EXPECT_EQ(padded.loss, alone.loss);
  EXPECT_EQ(padded.correct, alone.correct);
  EXPECT_TRUE(test::same_bits(std::span(padded.gradient).first(50), alone.gradient));
  for (std::size_t i = 50; i < 80; ++i) EXPECT_EQ(padded.gradient[i], 0);
}

// A sequence's positions count as its records would.
TEST(SoftmaxCrossEntropy, TakesOneLabelAPosition) {
  const auto logits = test::random_values(3 * 4 * 10, 3);
  const std::vector<std::int32_t> labels = {1, 2, 3, 4, 5, -1, 7, 8, 9, 0, 1, 2};
  const SoftmaxCrossEntropy loss(0.1);
  EXPECT_EQ(loss.workspace_bytes({3, 4, 10}), loss.workspace_bytes({12, 10}));
  const Result sequences = run(loss, {3, 4, 10}, logits, labels, 0.2F);
  const Result rows = run(loss, {12, 10}, logits, labels, 0.2F);
  EXPECT_EQ(sequences.loss, rows.loss);
  EXPECT_EQ(sequences.correct, rows.correct);
  EXPECT_TRUE(test::same_bits(sequences.gradient, rows.gradient));
}

TEST(SoftmaxCrossEntropy, HoldsForHugeLogits) {
  const Result result =
      run(SoftmaxCrossEntropy(0.1), {2, 3}, {10000, 9999, 0, -10000, -10001, -10000}, {0, 2});
  EXPECT_TRUE(std::isfinite(result.loss));
  const Naive naive({2, 3}, {10000, 9999, 0, -10000, -10001, -10000}, {0, 2}, 0.1, 1);
  EXPECT_NEAR(result.loss, naive.loss, tolerance::kSoftmax * naive.loss);
  EXPECT_LT(test::relative_error(result.gradient, naive.gradient), tolerance::kSoftmax);
  EXPECT_EQ(result.correct, 1) << "the second row's largest logit is tied: the first one counts";
}

TEST(SoftmaxCrossEntropy, ShowsBrokenNumbersAndLabels) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(run(SoftmaxCrossEntropy(), {1, 3}, {1, nan, 2}, {0}).loss));
  EXPECT_TRUE(std::isnan(run(SoftmaxCrossEntropy(), {1, 3}, {nan, 1, 2}, {2}).loss));
  EXPECT_TRUE(std::isnan(run(SoftmaxCrossEntropy(), {1, 3}, {1, 2, 3}, {3}).loss)) << "label 3 of 3 classes";
}

TEST(SoftmaxCrossEntropy, NamesWrongArguments) {
  EXPECT_THROW(SoftmaxCrossEntropy(1.0), std::invalid_argument);
  EXPECT_THROW(SoftmaxCrossEntropy(-0.1), std::invalid_argument);
  EXPECT_THROW(run(SoftmaxCrossEntropy(), {1, 1, 1, 3}, {1, 2, 3}, {0}), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim
