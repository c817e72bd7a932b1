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

LinearSpec spec_of(std::int64_t rows, std::int64_t in, std::int64_t out, ElementTypes types = {}) {
  return {.rows = rows,
          .in = in,
          .out = out,
          .bias = Bias::kYes,
          .precision = MatrixPrecision::kBf16,
          .types = types};
}

struct Case {
  std::int64_t rows, in, out;
};

class TiledLinearTest : public testing::TestWithParam<std::tuple<Case, int>> {
 protected:
  static constexpr std::int64_t kSamples = 400;  // of a result that are compared

  void SetUp() override {
    if (!multiplies_bf16_pairs()) GTEST_SKIP() << "no bf16";
  }

  // All three directions, on values that are given and stored in a type, weights in the inputs'.
  struct Results {
    std::vector<float> y, dx, dw, db;  // y and dx as fp32, whatever they are stored in
  };
  Results run(ElementTypes types, GradientMode mode) {
    const LinearSpec spec = spec_of(c_.rows, c_.in, c_.out, types);
    EXPECT_TRUE(TiledLinear::handles(threads_, spec));
    const TiledLinear map(threads_, spec);
    Memory workspace(Device::host(), map.workspace_bytes());
    Results r{nothing(c_.rows * c_.out), nothing(c_.rows * c_.in), before_w_, before_b_};
    std::vector<Bf16> y(r.y.size()), dx(r.dx.size());
    const bool in = types.input == ElementType::kBf16, out = types.output == ElementType::kBf16;
    const Factor x = in ? Factor{nullptr, x_rounded_.data()} : Factor{x_.data()};
    const Factor w = in ? Factor{nullptr, w_rounded_.data()} : Factor{w_.data()};
    const Factor dy = out ? Factor{nullptr, dy_rounded_.data()} : Factor{dy_.data()};
    const auto to = [](bool rounded, std::vector<float>& fp32, std::vector<Bf16>& bf16) {
      return rounded ? Destination{nullptr, bf16.data()} : Destination{fp32.data()};
    };
    Stream stream(Device::host(), {.threads = threads_});
    map.forward(stream, {.input = x, .weights = w, .bias = bias_.data(), .output = to(out, r.y, y)},
                workspace.data());
    map.backward_input(stream, {.weights = w, .output_gradient = dy, .input_gradient = to(in, r.dx, dx)},
                       workspace.data());
    map.backward_weights(stream,
                         {.input = x,
                          .output_gradient = dy,
                          .weight_gradient = r.dw.data(),
                          .bias_gradient = r.db.data(),
                          .mode = mode},
                         workspace.data());
    stream.synchronize();
    for (std::size_t i = 0; out && i < y.size(); ++i) r.y[i] = to_float(y[i]);
    for (std::size_t i = 0; in && i < dx.size(); ++i) r.dx[i] = to_float(dx[i]);
    return r;
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
  static std::vector<float> nothing(std::int64_t count) {
    return std::vector<float>(static_cast<std::size_t>(count), kNaN);
  }
  static std::vector<Bf16> rounded(const std::vector<float>& values) { return test::bf16_copy(values); }

  const Case c_ = std::get<0>(GetParam());
  const int threads_ = std::get<1>(GetParam());
  const std::vector<float> x_ = random_values(c_.rows * c_.in, 1), w_ = random_values(c_.out * c_.in, 2);
  const std::vector<float> dy_ = random_values(c_.rows * c_.out, 3), bias_ = random_values(c_.out, 4);
  const std::vector<float> before_w_ = random_values(c_.out * c_.in, 5), before_b_ = random_values(c_.out, 6);
  const std::vector<Bf16> x_rounded_ = rounded(x_), w_rounded_ = rounded(w_), dy_rounded_ = rounded(dy_);
};

// The factors are the nearest values in bf16; the bias gradient is the sum of what is given.
TEST_P(TiledLinearTest, MatchesLoops) {
  const std::vector<float> x = test::nearest_bf16(x_), w = test::nearest_bf16(w_);
  const std::vector<float> dy = test::nearest_bf16(dy_);
  for (const bool adds : {false, true}) {
    const Results r = run({}, adds ? GradientMode::kAdd : GradientMode::kStore);
    const auto from = [&](const std::vector<float>& before, std::int64_t index) {
      return adds ? double{at(before, index)} : 0.0;
    };
    expect_sums(
        r.y, c_.out, c_.in, [&](std::int64_t, std::int64_t o) { return at(bias_, o); },
        [&](std::int64_t n, std::int64_t o, std::int64_t i) {
          return double{at(x, n * c_.in + i)} * at(w, o * c_.in + i);
        });
    expect_sums(
        r.dx, c_.in, c_.out, [](std::int64_t, std::int64_t) { return 0.0; },
        [&](std::int64_t n, std::int64_t i, std::int64_t o) {
          return double{at(dy, n * c_.out + o)} * at(w, o * c_.in + i);
        });
    expect_sums(
        r.dw, c_.in, c_.rows, [&](std::int64_t o, std::int64_t i) { return from(before_w_, o * c_.in + i); },
        [&](std::int64_t o, std::int64_t i, std::int64_t n) {
          return double{at(dy, n * c_.out + o)} * at(x, n * c_.in + i);
        });
    expect_sums(
        r.db, c_.out, c_.rows, [&](std::int64_t, std::int64_t o) { return from(before_b_, o); },
        [&](std::int64_t, std::int64_t o, std::int64_t n) { return double{at(dy_, n * c_.out + o)}; });
  }
}

// Given in bf16 or rounded on the way, factors are the same; results in bf16 are those in fp32, rounded.
TEST_P(TiledLinearTest, ComputesTheSameFromAndToBf16) {
  constexpr ElementType kFp32 = ElementType::kFp32, kBf16 = ElementType::kBf16;
  const std::vector<float> dy = test::nearest_bf16(dy_);
  for (const GradientMode mode : {GradientMode::kStore, GradientMode::kAdd}) {
    const Results fp32 = run({kFp32, kFp32}, mode);
    for (const ElementTypes types :
         {ElementTypes{kBf16, kBf16}, ElementTypes{kBf16, kFp32}, ElementTypes{kFp32, kBf16}}) {
      const Results mixed = run(types, mode);
      EXPECT_EQ(mixed.y, types.output == kBf16 ? test::nearest_bf16(fp32.y) : fp32.y);
      EXPECT_EQ(mixed.dx, types.input == kBf16 ? test::nearest_bf16(fp32.dx) : fp32.dx);
      EXPECT_EQ(mixed.dw, fp32.dw);
      if (types.output == kFp32) {
        EXPECT_EQ(mixed.db, fp32.db);
        continue;
      }
      expect_sums(
          mixed.db, c_.out, c_.rows,
          [&](std::int64_t, std::int64_t o) { return mode == GradientMode::kAdd ? at(before_b_, o) : 0.0F; },
          [&](std::int64_t, std::int64_t o, std::int64_t n) { return double{at(dy, n * c_.out + o)}; });
    }
  }
}

// 272 and 528: more than are packed together of a gradient; 2048 x 192: of the weights. 2056 and 3080 rows:
// up to three groups, for four threads two of two each, with several blocks. 2048: two groups with a block
// each, so that a factor stays packed: that of the outputs or, with 528 of them, of the inputs. 520: chunks
// are short.
INSTANTIATE_TEST_SUITE_P(Extents, TiledLinearTest,
                         testing::Combine(testing::Values(Case{2056, 272, 192}, Case{3080, 48, 528},
                                                          Case{2048, 272, 192}, Case{2048, 48, 528},
                                                          Case{2048, 256, 256}, Case{528, 272, 304},
                                                          Case{512, 2048, 192}),
                                          testing::Values(1, 2, 3, 4)));
INSTANTIATE_TEST_SUITE_P(NarrowExtents, TiledLinearTest,
                         testing::Combine(testing::Values(Case{512, 32, 32}, Case{520, 64, 80}),
                                          testing::Values(1, 2)));

TEST(TiledLinear, IsForManyRowsOfFeaturesInSixteens) {
  if (!multiplies_bf16_pairs()) GTEST_SKIP() << "no bf16";
  EXPECT_TRUE(TiledLinear::handles(1, spec_of(512, 32, 48)));
  EXPECT_FALSE(TiledLinear::handles(1, spec_of(504, 32, 48))) << "few rows";
  EXPECT_FALSE(TiledLinear::handles(1, spec_of(516, 32, 48))) << "rows not in eights";
  EXPECT_FALSE(TiledLinear::handles(1, spec_of(512, 16, 48))) << "one vector";
  EXPECT_FALSE(TiledLinear::handles(1, spec_of(512, 32, 65)));
  EXPECT_FALSE(TiledLinear::handles(1, spec_of(512, 2064, 48))) << "too wide for the caches";
  EXPECT_FALSE(TiledLinear::handles(4, spec_of(1024, 48, 48))) << "three vectors for four threads";
  EXPECT_TRUE(TiledLinear::handles(16, spec_of(16384, 128, 128))) << "eight vectors for 16 threads";
  EXPECT_TRUE(TiledLinear::handles(16, spec_of(2048, 256, 256))) << "two groups";
  LinearSpec fp32 = spec_of(512, 32, 48);
  fp32.precision = MatrixPrecision::kFp32;
  EXPECT_FALSE(TiledLinear::handles(1, fp32));
}

}  // namespace
}  // namespace pipeoptim::host
