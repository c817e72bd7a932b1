// Linear maps by tiles where they are cut: columns in panels and parts, rows in chunks, blocks, and groups of
// threads. linear_test.cpp has whole layers.
#include "layers/host/tiled_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "layers/host/bf16_instructions.h"
#include "tests/support/bf16.h"
#include "tests/support/layer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::host {
namespace {

using test::random_values;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

LinearSpec spec_of(std::int64_t rows, std::int64_t in, std::int64_t out) {
  return {.rows = rows, .in = in, .out = out, .bias = Bias::kYes, .precision = MatrixPrecision::kBf16};
}

struct Case {
  std::int64_t rows, in, out;
};

class TiledLinearTest : public testing::TestWithParam<std::tuple<Case, int>> {
 protected:
  static constexpr std::int64_t kSamples = 400;  // of a result that are compared

  void SetUp() override {
    if (!multiplies_bf16_pairs()) GTEST_SKIP() << "no bf16";
    ASSERT_TRUE(TiledLinear::handles(spec_));
    map_.emplace(threads_, spec_);
    workspace_.emplace(Device::host(), map_->workspace_bytes());
  }

  static float at(const std::vector<float>& values, std::int64_t index) {
    return values[static_cast<std::size_t>(index)];
  }
  // All of `result` is written, and samples are `before` and the sums of terms(row, column, k) over k.
  template <typename Before, typename Terms>
  static void expect_sums(const std::vector<float>& result, std::int64_t columns, std::int64_t inner,
                          const Before& before, const Terms& terms) {
    for (const float value : result) ASSERT_TRUE(std::isfinite(value));
    const auto size = static_cast<std::int64_t>(result.size());
    for (std::int64_t sample = 0; sample < kSamples; ++sample) {
      const std::int64_t index = sample * 7919 * 104729 % size, row = index / columns,
                         column = index % columns;
      double sum = before(row, column), magnitude = std::abs(sum);
      for (std::int64_t k = 0; k < inner; ++k) {
        const double term = terms(row, column, k);
        sum += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(at(result, index), sum, tolerance::kFp32Product * magnitude) << row << ", " << column;
    }
  }
  std::vector<float> nothing(std::int64_t count) {
    return std::vector<float>(static_cast<std::size_t>(count), kNaN);
  }

  const Case c_ = std::get<0>(GetParam());
  const int threads_ = std::get<1>(GetParam());
  const LinearSpec spec_ = spec_of(c_.rows, c_.in, c_.out);
  const std::vector<float> x_ = test::nearest_bf16(random_values(c_.rows * c_.in, 1));
  const std::vector<float> w_ = test::nearest_bf16(random_values(c_.out * c_.in, 2));
  const std::vector<float> dy_ = test::nearest_bf16(random_values(c_.rows * c_.out, 3));
  const std::vector<Bf16> x_factor_ = test::bf16_copy(x_), w_factor_ = test::bf16_copy(w_),
                          dy_factor_ = test::bf16_copy(dy_);
  Stream stream_{Device::host(), {.threads = threads_}};
  std::optional<TiledLinear> map_;
  std::optional<Memory> workspace_;
};

TEST_P(TiledLinearTest, MatchesLoops) {
  const std::vector<float> bias = random_values(c_.out, 4);
  std::vector<float> y = nothing(c_.rows * c_.out), dx = nothing(c_.rows * c_.in),
                     dw = nothing(c_.out * c_.in);
  map_->forward(stream_, x_factor_.data(), w_factor_.data(), bias.data(), {y.data()}, workspace_->data());
  map_->backward_input(stream_, dy_factor_.data(), w_factor_.data(), {dx.data()}, workspace_->data());
  map_->backward_weights(stream_, dy_factor_.data(), x_factor_.data(), dw.data(), GradientMode::kStore,
                         workspace_->data());
  stream_.synchronize();
  const auto none = [](std::int64_t, std::int64_t) { return 0.0; };
  expect_sums(
      y, c_.out, c_.in, [&](std::int64_t, std::int64_t o) { return at(bias, o); },
      [&](std::int64_t n, std::int64_t o, std::int64_t i) {
        return double{at(x_, n * c_.in + i)} * at(w_, o * c_.in + i);
      });
  expect_sums(dx, c_.in, c_.out, none, [&](std::int64_t n, std::int64_t i, std::int64_t o) {
    return double{at(dy_, n * c_.out + o)} * at(w_, o * c_.in + i);
  });
  expect_sums(dw, c_.in, c_.rows, none, [&](std::int64_t o, std::int64_t i, std::int64_t n) {
    return double{at(dy_, n * c_.out + o)} * at(x_, n * c_.in + i);
  });
}

TEST_P(TiledLinearTest, AddsGradientsAndRoundsResults) {
  const std::vector<float> before = random_values(c_.out * c_.in, 5);
  std::vector<float> dw = before, dx = nothing(c_.rows * c_.in);
  std::vector<Bf16> rounded(dx.size());
  map_->backward_weights(stream_, dy_factor_.data(), x_factor_.data(), dw.data(), GradientMode::kAdd,
                         workspace_->data());
  map_->backward_input(stream_, dy_factor_.data(), w_factor_.data(), {dx.data()}, workspace_->data());
  map_->backward_input(stream_, dy_factor_.data(), w_factor_.data(), {nullptr, rounded.data()},
                       workspace_->data());
  stream_.synchronize();
  expect_sums(
      dw, c_.in, c_.rows, [&](std::int64_t o, std::int64_t i) { return at(before, o * c_.in + i); },
      [&](std::int64_t o, std::int64_t i, std::int64_t n) {
        return double{at(dy_, n * c_.out + o)} * at(x_, n * c_.in + i);
      });
  const std::vector<Bf16> expected = test::bf16_copy(dx);
  for (std::size_t i = 0; i < rounded.size(); ++i) ASSERT_EQ(rounded[i].bits, expected[i].bits) << i;
}

// 272 and 528: more than are packed together of a gradient; 2048 x 144: of the weights; 2056 rows: two groups
// for two threads, not in whole blocks; 520: a thread's last chunk is short.
INSTANTIATE_TEST_SUITE_P(Extents, TiledLinearTest,
                         testing::Combine(testing::Values(Case{512, 32, 32}, Case{520, 64, 80},
                                                          Case{2056, 272, 48}, Case{3080, 48, 528},
                                                          Case{528, 272, 304}, Case{512, 2048, 144}),
                                          testing::Values(1, 2, 3)));

TEST(TiledLinear, IsForManyRowsOfFeaturesInSixteens) {
  if (!multiplies_bf16_pairs()) GTEST_SKIP() << "no bf16";
  EXPECT_TRUE(TiledLinear::handles(spec_of(512, 32, 48)));
  EXPECT_FALSE(TiledLinear::handles(spec_of(504, 32, 48))) << "few rows";
  EXPECT_FALSE(TiledLinear::handles(spec_of(516, 32, 48))) << "rows not in eights";
  EXPECT_FALSE(TiledLinear::handles(spec_of(512, 16, 48))) << "one vector";
  EXPECT_FALSE(TiledLinear::handles(spec_of(512, 32, 65)));
  LinearSpec fp32 = spec_of(512, 32, 48);
  fp32.precision = MatrixPrecision::kFp32;
  EXPECT_FALSE(TiledLinear::handles(fp32));
}

}  // namespace
}  // namespace pipeoptim::host
