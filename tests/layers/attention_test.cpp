#include "layers/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "tests/support/finite_difference.h"
#include "tests/support/halves.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::PlannedLayer;
using test::random_values;

using Matrix = std::vector<double>;

// y = x w^T + b for rows of x.
Matrix project(const Matrix& x, std::span<const float> w, std::span<const float> b) {
  const std::size_t out = b.size(), in = w.size() / out;
  Matrix y(x.size() / in * out);
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] = static_cast<double>(b[i % out]);
    for (std::size_t c = 0; c < in; ++c)
      y[i] += x[i / out * in + c] * static_cast<double>(w[i % out * in + c]);
  }
  return y;
}

// Gradients of the same.
struct ProjectBackward {
  Matrix dx, dw, db;
  ProjectBackward(const Matrix& x, std::span<const float> w, const Matrix& dy, std::size_t out)
      : dx(x.size()), dw(w.size()), db(out) {
    const std::size_t in = w.size() / out;
    for (std::size_t i = 0; i < dy.size(); ++i) {
      db[i % out] += dy[i];
      for (std::size_t c = 0; c < in; ++c) {
        dx[i / out * in + c] += dy[i] * static_cast<double>(w[i % out * in + c]);
        dw[i % out * in + c] += dy[i] * x[i / out * in + c];
      }
    }
  }
};

// The whole layer in double, one score at a time.
struct Naive {
  Matrix y, dx, dw_attention, db_attention, dw_projection, db_projection;

  Naive(const Shape& shape, std::size_t heads, PlannedLayer& layer, const std::vector<float>& input,
        const std::vector<float>& output_gradient) {
    const auto records = static_cast<std::size_t>(shape[0]), length = static_cast<std::size_t>(shape[1]);
    const auto features = static_cast<std::size_t>(shape[2]), width = features / heads;
    const Matrix x(input.begin(), input.end()), dy(output_gradient.begin(), output_gradient.end());
    const Matrix qkv = project(x, layer.weights(0), layer.weights(1));
    Matrix mixed(x.size()), dqkv(qkv.size());
    const double scale = 1 / std::sqrt(static_cast<double>(width));
    const auto at = [&](std::size_t n, std::size_t t, std::size_t part, std::size_t head) {
      return ((n * length + t) * 3 + part) * features + head * width;
    };
    std::vector<Matrix> probabilities;
    for (std::size_t n = 0; n < records; ++n) {
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t t = 0; t < length; ++t) {
          Matrix p(t + 1);
          double sum = 0;
          for (std::size_t s = 0; s <= t; ++s) {
            for (std::size_t c = 0; c < width; ++c) p[s] += qkv[at(n, t, 0, h) + c] * qkv[at(n, s, 1, h) + c];
            p[s] = std::exp(p[s] * scale);
            sum += p[s];
          }
          for (std::size_t s = 0; s <= t; ++s) {
            p[s] /= sum;
            for (std::size_t c = 0; c < width; ++c)
              mixed[(n * length + t) * features + h * width + c] += p[s] * qkv[at(n, s, 2, h) + c];
          }
          probabilities.push_back(std::move(p));
        }
      }
    }
    y = project(mixed, layer.weights(2), layer.weights(3));
    ProjectBackward of_projection(mixed, layer.weights(2), dy, features);
    std::size_t row = 0;
    for (std::size_t n = 0; n < records; ++n) {
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t t = 0; t < length; ++t) {
          const Matrix& p = probabilities[row++];
          const double* gradient = &of_projection.dx[(n * length + t) * features + h * width];
          Matrix dp(t + 1);
          double product = 0;
          for (std::size_t s = 0; s <= t; ++s) {
            for (std::size_t c = 0; c < width; ++c) {
              dp[s] += gradient[c] * qkv[at(n, s, 2, h) + c];
              dqkv[at(n, s, 2, h) + c] += p[s] * gradient[c];
            }
            product += p[s] * dp[s];
          }
          for (std::size_t s = 0; s <= t; ++s) {
            const double ds = p[s] * (dp[s] - product) * scale;
            for (std::size_t c = 0; c < width; ++c) {
              dqkv[at(n, t, 0, h) + c] += ds * qkv[at(n, s, 1, h) + c];
              dqkv[at(n, s, 1, h) + c] += ds * qkv[at(n, t, 0, h) + c];
            }
          }
        }
      }
    }
    ProjectBackward of_attention(x, layer.weights(0), dqkv, 3 * features);
    dx = std::move(of_attention.dx);
    dw_attention = std::move(of_attention.dw);
    db_attention = std::move(of_attention.db);
    dw_projection = std::move(of_projection.dw);
    db_projection = std::move(of_projection.db);
  }
};

struct Case {
  Shape input;
  std::int64_t heads;
  int threads;
};

class AttentionTest : public testing::TestWithParam<Case> {
 protected:
  AttentionOptions options() const {
    return {.features = GetParam().input.last(), .heads = GetParam().heads};
  }
};

TEST_P(AttentionTest, MatchesLoopsInDouble) {
  const auto& [shape, heads, threads] = GetParam();
  auto layer = planned<CausalSelfAttention>(shape, {.threads = threads}, options());
  const auto x = random_values(shape.elements(), 1, 0.5F), dy = random_values(shape.elements(), 2);
  const Naive naive(shape, static_cast<std::size_t>(heads), layer, x, dy);
  EXPECT_LT(test::relative_error(layer.forward(x), naive.y), tolerance::kAttention);
  EXPECT_LT(test::relative_error(layer.backward(dy), naive.dx), tolerance::kAttention);
  EXPECT_LT(test::relative_error(layer.gradients(0), naive.dw_attention), tolerance::kAttention);
  EXPECT_LT(test::relative_error(layer.gradients(1), naive.db_attention), tolerance::kAttention);
  EXPECT_LT(test::relative_error(layer.gradients(2), naive.dw_projection), tolerance::kAttention);
  EXPECT_LT(test::relative_error(layer.gradients(3), naive.db_projection), tolerance::kAttention);
  layer.backward(dy, GradientMode::kAdd);
  Matrix twice = naive.dw_attention;
  for (double& value : twice) value *= 2;
  EXPECT_LT(test::relative_error(layer.gradients(0), twice), tolerance::kAttention);
}

TEST_P(AttentionTest, HalvesMayRunApart) {
  const Shape& shape = GetParam().input;
  test::expect_same_halves([this] { return std::make_unique<CausalSelfAttention>(options()); }, shape,
                           random_values(shape.elements(), 3), random_values(shape.elements(), 4));
}

TEST_P(AttentionTest, SeesNoLaterPosition) {
  const Shape& shape = GetParam().input;
  auto layer = planned<CausalSelfAttention>(shape, {}, options());
  const auto x = random_values(shape.elements(), 5);
  const std::vector<float> before = layer.forward(x);
  auto changed = x;
  const auto features = static_cast<std::size_t>(shape[2]);
  const std::size_t seen = static_cast<std::size_t>(shape[1] / 2) * features;  // of the first record
  for (std::size_t i = seen; i < changed.size(); ++i) changed[i] = 3 - x[i];
  const std::vector<float> after = layer.forward(changed);
  EXPECT_TRUE(test::same_bits(std::span(after).first(seen), std::span(before).first(seen)));
  EXPECT_FALSE(test::same_bits(after, before));
}

// Lengths below, at and above the blocks of rows (64; from 257 on a quarter), odd widths, one head, one
// position.
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionTest,
                         testing::Values(Case{{1, 1, 4}, 2, 1}, Case{{3, 7, 10}, 2, 1},
                                         Case{{2, 64, 12}, 3, 2}, Case{{2, 65, 8}, 1, 2},
                                         Case{{3, 150, 24}, 4, 1}, Case{{1, 300, 6}, 2, 2}));

TEST(Attention, MatchesDifferences) {
  auto layer = planned<CausalSelfAttention>(Shape{2, 5, 6}, {}, AttentionOptions{.features = 6, .heads = 2});
  EXPECT_LT(test::gradient_error(layer, random_values(60, 6, 0.5F)), tolerance::kFiniteDifference);
}

TEST(Attention, ShowsBrokenNumbers) {
  const Shape shape{1, 8, 4};
  auto layer = planned<CausalSelfAttention>(shape, {}, AttentionOptions{.features = 4, .heads = 2});
  auto x = random_values(shape.elements(), 7);
  x[4] = std::numeric_limits<float>::quiet_NaN();  // of position 1
  const auto y = layer.forward(x);
  EXPECT_TRUE(std::isnan(y[4]));
  EXPECT_TRUE(std::isnan(y.back()));
  const auto dx = layer.backward(random_values(shape.elements(), 8));
  EXPECT_TRUE(std::isnan(dx[4]));
}

TEST(Attention, NamesWrongNumbers) {
  EXPECT_THROW(CausalSelfAttention({.features = 6, .heads = 4}), std::invalid_argument);
  EXPECT_THROW(CausalSelfAttention({.features = 6, .heads = 0}), std::invalid_argument);
  CausalSelfAttention layer({.features = 6, .heads = 2});
  try {
    layer.plan(Device::host(), 1, {2, 6});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("6, 2 heads"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("got 2x6"), std::string::npos) << error.what();
  }
  auto joined = planned<CausalSelfAttention>(Shape{1, 2, 6}, {}, AttentionOptions{.features = 6, .heads = 2});
  joined.forward(random_values(12, 1));
  EXPECT_THROW(joined.backward(random_values(12, 2), GradientMode::kStore, 0, PlannedLayer::Part::kInput),
               std::logic_error);
}

}  // namespace
}  // namespace pipeoptim
