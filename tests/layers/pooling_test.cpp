#include "layers/pooling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "layers/flatten.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::PlannedLayer;

struct Case {
  Shape input;
  PoolOptions options;
};

// Distinct values, 1/8 apart: no ties and no change of the largest within a difference's steps.
std::vector<float> distinct_values(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), -static_cast<float>(count) / 2);
  std::mt19937 random(11);
  std::shuffle(values.begin(), values.end(), random);
  for (float& value : values) value /= 8;
  return values;
}

// Scatters window by window; the layers gather.
struct Naive {
  std::vector<double> y, dx;
  Naive(const Case& c, const Shape& out, const std::vector<float>& x, const std::vector<float>& dy, bool max)
      : y(static_cast<std::size_t>(out.elements())), dx(x.size()) {
    const auto& [kernel, stride, padding] = c.options;
    for (std::int64_t o = 0; o < out.elements(); ++o) {
      const std::int64_t channel = o % out[3];
      const std::int64_t ox = o / out[3] % out[2];
      const std::int64_t oy = o / (out[3] * out[2]) % out[1];
      const std::int64_t record = o / (out[3] * out[2] * out[1]);
      double largest = -1e30;
      std::size_t where = 0;
      double sum = 0;
      for (std::int64_t k = 0; k < kernel * kernel; ++k) {
        const std::int64_t iy = oy * stride - padding + k / kernel;
        const std::int64_t ix = ox * stride - padding + k % kernel;
        if (iy < 0 || ix < 0 || iy >= c.input[1] || ix >= c.input[2]) continue;
        const auto i =
            static_cast<std::size_t>(((record * c.input[1] + iy) * c.input[2] + ix) * out[3] + channel);
        const auto value = static_cast<double>(x[i]);
        sum += value;
        if (value > largest) {
          largest = value;
          where = i;
        }
        if (!max)
          dx[i] +=
              static_cast<double>(dy[static_cast<std::size_t>(o)]) / static_cast<double>(kernel * kernel);
      }
      y[static_cast<std::size_t>(o)] = max ? largest : sum / static_cast<double>(kernel * kernel);
      if (max) dx[where] += static_cast<double>(dy[static_cast<std::size_t>(o)]);
    }
  }
};

class PoolTest : public testing::TestWithParam<Case> {};

template <typename Pool>
void check(const Case& c, bool max) {
  auto layer = planned<Pool>(c.input, {}, c.options);
  auto two = planned<Pool>(c.input, {.threads = 2}, c.options);
  const auto x = distinct_values(c.input.elements());
  const auto dy = test::random_values(layer.plan().output.elements(), 2);
  const Naive naive(c, layer.plan().output, x, dy, max);
  const auto y = layer.forward(x);
  const auto dx = layer.backward(dy);
  EXPECT_LT(test::relative_error(y, naive.y), tolerance::kElementwise);
  EXPECT_LT(test::relative_error(dx, naive.dx), tolerance::kElementwise);
  EXPECT_TRUE(test::same_bits(two.forward(x), y));
  EXPECT_TRUE(test::same_bits(two.backward(dy), dx));
}

TEST_P(PoolTest, MaxMatchesEveryWindow) { check<MaxPool2d>(GetParam(), true); }
TEST_P(PoolTest, AverageMatchesEveryWindow) { check<AvgPool2d>(GetParam(), false); }

INSTANTIATE_TEST_SUITE_P(Windows, PoolTest,
                         testing::Values(Case{{2, 6, 8, 3}, {2, 2, 0}}, Case{{3, 7, 5, 16}, {3, 2, 1}},
                                         Case{{1, 9, 9, 5}, {3, 1, 1}}, Case{{2, 8, 8, 1}, {2, 3, 0}},
                                         Case{{2, 5, 4, 7}, {4, 4, 2}}, Case{{1, 1, 1, 4}, {1, 1, 0}}));

TEST(Pooling, MatchesDifferences) {
  const Shape shape{2, 4, 5, 3};
  const auto x = distinct_values(shape.elements());
  auto max = planned<MaxPool2d>(shape, {}, PoolOptions{3, 2, 1});
  EXPECT_LT(test::gradient_error(max, x), tolerance::kFiniteDifference);
  auto average = planned<AvgPool2d>(shape, {}, PoolOptions{3, 2, 1});
  EXPECT_LT(test::gradient_error(average, x), tolerance::kFiniteDifference);
  auto global = planned<GlobalAvgPool>(shape, {});
  EXPECT_LT(test::gradient_error(global, x), tolerance::kFiniteDifference);
  auto flatten = planned<Flatten>(shape, {});
  EXPECT_LT(test::gradient_error(flatten, x), tolerance::kFiniteDifference);
}

TEST(MaxPool, GivesTiesToTheFirstAndKeepsNaN) {
  auto layer = planned<MaxPool2d>(Shape{1, 2, 4, 1}, {});
  const float nan = PlannedLayer::kPoison;
  const auto y = layer.forward({1, 1, 5, nan, 1, 1, 9, 7});
  EXPECT_EQ(y[0], 1);
  EXPECT_TRUE(std::isnan(y[1]));
  EXPECT_EQ(layer.backward({3, 4}), (std::vector<float>{3, 0, 0, 4, 0, 0, 0, 0}));
}

TEST(GlobalAvgPool, IsTheMeanOfEachChannel) {
  const Shape shape{3, 4, 5, 19};
  auto layer = planned<GlobalAvgPool>(shape, {});
  EXPECT_EQ(layer.plan().output, (Shape{3, 19}));
  const auto x = test::random_values(shape.elements(), 3);
  const auto dy = test::random_values(3 * 19, 4);
  std::vector<double> y(3 * 19);
  std::vector<double> dx(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t o = i / (20 * 19) * 19 + i % 19;
    y[o] += static_cast<double>(x[i]) / 20;
    dx[i] = static_cast<double>(dy[o]) / 20;
  }
  EXPECT_LT(test::relative_error(layer.forward(x), y), tolerance::kElementwise);
  EXPECT_LT(test::relative_error(layer.backward(dy), dx), tolerance::kElementwise);
}

TEST(Flatten, HasPyTorchsOrder) {
  auto layer = planned<Flatten>(Shape{2, 1, 3, 2}, {});
  EXPECT_EQ(layer.plan().output, (Shape{2, 6}));
  const std::vector<float> pixels = {0,   10,  1,   11,  2,   12,
                                     100, 110, 101, 111, 102, 112};  // 2 channels a pixel
  const std::vector<float> planes = {0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112};
  EXPECT_EQ(layer.forward(pixels), planes);
  EXPECT_EQ(layer.backward(planes), pixels);
  auto flat = planned<Flatten>(Shape{2, 3}, {});
  EXPECT_EQ(flat.forward({1, 2, 3, 4, 5, 6}), (std::vector<float>{1, 2, 3, 4, 5, 6}));
}

TEST(Pooling, NamesWrongShapes) {
  MaxPool2d pool({3, 2, 1});
  try {
    pool.plan(Device::host(), 1, {4, 10});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("max pool 3x3"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("4x10"), std::string::npos) << error.what();
  }
  EXPECT_THROW(AvgPool2d({4, 4, 0}).plan(Device::host(), 1, {1, 3, 8, 2}), std::invalid_argument);
  EXPECT_THROW(GlobalAvgPool().plan(Device::host(), 1, {4, 10}), std::invalid_argument);
  EXPECT_THROW(Flatten().plan(Device::host(), 1, {4}), std::invalid_argument);
  EXPECT_THROW(MaxPool2d({2, 0, 0}), std::invalid_argument);
  EXPECT_THROW(MaxPool2d({2, 2, 2}), std::invalid_argument) << "a window of padding alone has no maximum";
}

}  // namespace
}  // namespace pipeoptim
