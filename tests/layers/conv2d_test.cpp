#include "layers/conv2d.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/support/bf16.h"
#include "tests/support/layer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::largest_error;
using test::LayerRun;
using test::random_values;

struct Case {
  const char* name;
  Shape input;
  Conv2dOptions options;
};

// All three directions by seven loops in double, with the sums of absolute terms.
class Naive {
 public:
  std::vector<double> y, y_size, dx, dx_size, dw, dw_size, db, db_size;

  // The bias gradient is the sum of the output gradient as it is, its other factor that of the products.
  Naive(const Case& c, const Shape& out, const std::vector<float>& x, const std::vector<float>& w,
        const std::vector<float>& b, const std::vector<float>& dy, const std::vector<float>& dy_factor)
      : x_(x), w_(w), dy_(dy_factor) {
    y.resize(dy.size());
    dx.resize(x.size());
    dw.resize(w.size());
    db.resize(static_cast<std::size_t>(out[3]));
    y_size = y;
    dx_size = dx;
    dw_size = dw;
    db_size = db;
    for (std::int64_t i = 0; i < out.elements(); ++i) {
      const std::int64_t o = i % out[3];
      const auto at = static_cast<std::size_t>(o);
      add(db, db_size, o, dy[static_cast<std::size_t>(i)]);
      if (c.options.bias == Bias::kYes) add(y, y_size, i, b[at]);
      output(c, out, i);
    }
  }

 private:
  void output(const Case& c, const Shape& out, std::int64_t index) {
    const Conv2dOptions& opt = c.options;
    const std::int64_t o = index % out[3];
    const std::int64_t column = index / out[3] % out[2];
    const std::int64_t row = index / out[3] / out[2] % out[1];
    const std::int64_t n = index / out[3] / out[2] / out[1];
    const std::int64_t in = opt.in / opt.groups;
    const std::int64_t first = o / (opt.out / opt.groups) * in;
    for (std::int64_t kh = 0; kh < opt.kernel; ++kh) {
      const std::int64_t h = row * opt.stride - opt.padding + kh * opt.dilation;
      if (h < 0 || h >= c.input[1]) continue;
      for (std::int64_t kw = 0; kw < opt.kernel; ++kw) {
        const std::int64_t v = column * opt.stride - opt.padding + kw * opt.dilation;
        if (v < 0 || v >= c.input[2]) continue;
        for (std::int64_t i = 0; i < in; ++i) {
          const std::int64_t from = ((n * c.input[1] + h) * c.input[2] + v) * opt.in + first + i;
          const std::int64_t weight = ((o * opt.kernel + kh) * opt.kernel + kw) * in + i;
          const double value = x_[static_cast<std::size_t>(from)];
          const double factor = w_[static_cast<std::size_t>(weight)];
          const double gradient = dy_[static_cast<std::size_t>(index)];
          add(y, y_size, index, value * factor);
          add(dx, dx_size, from, factor * gradient);
          add(dw, dw_size, weight, value * gradient);
        }
      }
    }
  }
  static void add(std::vector<double>& sum, std::vector<double>& size, std::int64_t at, double term) {
    sum[static_cast<std::size_t>(at)] += term;
    size[static_cast<std::size_t>(at)] += std::abs(term);
  }

  const std::vector<float>&x_, &w_, &dy_;
};

std::int64_t weights_of(const Conv2dOptions& o) { return o.out * o.kernel * o.kernel * (o.in / o.groups); }

class Conv2dTest : public testing::TestWithParam<std::tuple<Case, int, MatrixPrecision>> {
 protected:
  const Case& c() const { return std::get<0>(GetParam()); }
  bool has_bias() const { return c().options.bias == Bias::kYes; }
  Conv2d layer{c().options};
  std::vector<float> x = random_values(c().input.elements(), 1);
  std::vector<float> w = random_values(weights_of(c().options), 2);
  std::vector<float> b = random_values(c().options.out, 3);
  std::optional<LayerRun> planned;
  Shape out;
  std::vector<float> dy;

  MatrixPrecision precision() const { return std::get<2>(GetParam()); }
  LayerRun& run() { return *planned; }
  void SetUp() override {
    if (precision() == MatrixPrecision::kBf16 && !test::multiplies_bf16(Device::host())) {
      GTEST_SKIP() << "no bf16";
    }
    layer.set_precision(precision());
    planned.emplace(layer, c().input, std::get<1>(GetParam()));
    out = run().plan().output;
    dy = random_values(out.elements(), 4);
    run().set_parameter(0, w);
    if (has_bias()) run().set_parameter(1, b);
  }
};

TEST_P(Conv2dTest, MatchesLoops) {
  using test::as_factor;
  const auto x_factor = as_factor(x, precision()), w_factor = as_factor(w, precision()),
             dy_factor = as_factor(dy, precision());
  const Naive naive(c(), out, x_factor, w_factor, b, dy, dy_factor);
  EXPECT_LT(largest_error(run().forward(x), naive.y, naive.y_size), tolerance::kFp32Product);
  EXPECT_LT(largest_error(run().backward(dy), naive.dx, naive.dx_size), tolerance::kFp32Product);
  EXPECT_LT(largest_error(run().gradient(0), naive.dw, naive.dw_size), tolerance::kFp32Product);
  if (has_bias()) {
    EXPECT_LT(largest_error(run().gradient(1), naive.db, naive.db_size), tolerance::kFp32Product);
  }
}

TEST_P(Conv2dTest, GradientsAddUpExactly) {
  run().forward(x);
  run().backward(dy);
  const auto weight = run().gradient(0);
  const auto bias = has_bias() ? run().gradient(1) : std::vector<float>();
  run().backward(dy, GradientMode::kAdd);
  const auto weights = run().gradient(0);
  for (std::size_t i = 0; i < weight.size(); ++i) ASSERT_EQ(weights[i], 2 * weight[i]) << "weight " << i;
  for (std::size_t i = 0; i < bias.size(); ++i) ASSERT_EQ(run().gradient(1)[i], 2 * bias[i]) << "bias " << i;
}

TEST_P(Conv2dTest, RepeatsBitForBit) {
  const auto y = run().forward(x);
  const auto dx = run().backward(dy);
  const auto dw = run().gradient(0);
  EXPECT_EQ(run().forward(x), y);
  EXPECT_EQ(run().backward(dy), dx);
  EXPECT_EQ(run().gradient(0), dw);
}

const Case kCases[] = {
    {"GreyImage", {3, 12, 12, 1}, {.in = 1, .out = 16, .kernel = 3, .padding = 1}},
    {"ColourImage", {2, 9, 11, 3}, {.in = 3, .out = 8, .kernel = 3, .padding = 1, .bias = Bias::kNo}},
    {"OddChannels", {2, 7, 6, 5}, {.in = 5, .out = 7, .kernel = 3}},
    {"Full", {2, 8, 8, 32}, {.in = 32, .out = 16, .kernel = 3, .padding = 1, .bias = Bias::kNo}},
    {"Odd", {5, 7, 9, 16}, {.in = 16, .out = 16, .kernel = 3, .padding = 1, .bias = Bias::kNo}},
    {"OneColumn", {4, 7, 1, 32}, {.in = 32, .out = 16, .kernel = 3, .padding = 1}},
    {"Unpadded", {3, 6, 7, 48}, {.in = 48, .out = 32, .kernel = 3}},
    {"Wide", {9, 4, 5, 80}, {.in = 80, .out = 128, .kernel = 3, .padding = 1}},
    {"Tiled", {6, 9, 7, 16}, {.in = 16, .out = 16, .kernel = 3, .padding = 1}},
    {"TiledThreeBlocks", {9, 8, 6, 48}, {.in = 48, .out = 48, .kernel = 3, .padding = 1, .bias = Bias::kNo}},
    {"TiledWide", {13, 5, 5, 80}, {.in = 80, .out = 128, .kernel = 3, .padding = 1}},
    {"OddOutputs", {5, 7, 9, 8}, {.in = 8, .out = 24, .kernel = 3, .padding = 1}},
    {"WideStrided", {2, 5, 6, 64}, {.in = 64, .out = 160, .kernel = 3, .stride = 2, .padding = 1}},
    {"PaddedTwice", {11, 5, 4, 32}, {.in = 32, .out = 32, .kernel = 3, .stride = 3, .padding = 2}},
    {"Strided", {2, 9, 10, 16}, {.in = 16, .out = 32, .kernel = 3, .stride = 2, .padding = 1}},
    {"LargeKernel", {1, 17, 15, 8}, {.in = 8, .out = 8, .kernel = 7, .stride = 2, .padding = 3}},
    {"OneByOne", {3, 5, 6, 16}, {.in = 16, .out = 32, .kernel = 1}},
    {"OneByOneStrided", {2, 8, 8, 16}, {.in = 16, .out = 32, .kernel = 1, .stride = 2, .bias = Bias::kNo}},
    {"OneByOneStridedNarrow",
     {8, 28, 28, 4},
     {.in = 4, .out = 8, .kernel = 1, .stride = 2, .bias = Bias::kNo}},
    {"OneByOneStridedOdd", {2, 9, 9, 24}, {.in = 24, .out = 12, .kernel = 1, .stride = 3}},
    {"Dilated", {2, 11, 12, 8}, {.in = 8, .out = 16, .kernel = 3, .padding = 2, .dilation = 2}},
    {"Groups", {2, 8, 7, 16}, {.in = 16, .out = 32, .kernel = 3, .padding = 1, .groups = 2}},
    {"OddGroups", {2, 6, 6, 6}, {.in = 6, .out = 9, .kernel = 3, .padding = 1, .groups = 3}},
    {"Depthwise", {2, 8, 8, 16}, {.in = 16, .out = 16, .kernel = 3, .padding = 1, .groups = 16}},
    {"SmallImage", {5, 2, 2, 16}, {.in = 16, .out = 24, .kernel = 3, .padding = 1}},
    {"SmallOddImage",
     {3, 2, 1, 5},
     {.in = 5, .out = 7, .kernel = 5, .stride = 2, .padding = 4, .dilation = 2, .bias = Bias::kNo}},
    {"OnePixel", {4, 1, 1, 8}, {.in = 8, .out = 8, .kernel = 3, .padding = 1, .bias = Bias::kNo}},
    {"WholeImage", {2, 4, 4, 8}, {.in = 8, .out = 10, .kernel = 4}},
};

std::string case_name(const testing::TestParamInfo<Conv2dTest::ParamType>& information) {
  const auto& [layer, threads, precision] = information.param;
  return std::string(layer.name) + "Threads" + std::to_string(threads) +
         (precision == MatrixPrecision::kBf16 ? "Bf16" : "");
}
INSTANTIATE_TEST_SUITE_P(Shapes, Conv2dTest,
                         testing::Combine(testing::ValuesIn(kCases), testing::Values(1, 2, 3),
                                          testing::Values(MatrixPrecision::kFp32, MatrixPrecision::kBf16)),
                         case_name);

TEST(Conv2d, CentralDifferences) {
  Conv2d layer({.in = 2, .out = 3, .kernel = 3, .stride = 2, .padding = 1});
  LayerRun run(layer, {2, 5, 4, 2}, 1);
  auto x = random_values(80, 1);
  const auto by = random_values(run.plan().output.elements(), 2);
  std::vector<std::vector<float>> parameters{random_values(54, 3), random_values(3, 4)};
  for (std::size_t p = 0; p < 2; ++p) run.set_parameter(p, parameters[p]);
  run.forward(x);
  const auto dx = run.backward(by);
  constexpr float kStep = 0.25F;
  const auto slope = [&](float& moved, const auto& upload) {
    const float before = moved;
    double loss[2];
    for (int side = 0; side < 2; ++side) {
      moved = before + (side ? kStep : -kStep);
      upload();
      loss[side] = test::weighted_sum(run.forward(x), by);
    }
    moved = before;
    upload();
    return (loss[1] - loss[0]) / (2 * kStep);
  };
  constexpr double kTerms = 100;  // about the sum of the absolute terms of the loss
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(slope(x[i], [] {}), dx[i], kTerms * tolerance::kLinearDifference);
  }
  for (std::size_t p = 0; p < 2; ++p) {
    const auto gradient = run.gradient(p);
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      EXPECT_NEAR(slope(parameters[p][i], [&] { run.set_parameter(p, parameters[p]); }), gradient[i],
                  kTerms * tolerance::kLinearDifference);
    }
  }
}

TEST(Conv2d, DescribesItself) {
  const Conv2d layer({.in = 16, .out = 32, .kernel = 3, .stride = 2, .padding = 1, .groups = 4});
  EXPECT_EQ(layer.describe(), "conv2d 3x3, 16 -> 32, stride 2, padding 1, 4 groups");
  const auto parameters = layer.parameters();
  ASSERT_EQ(parameters.size(), 2U);
  EXPECT_EQ(parameters[0].shape, (Shape{32, 4, 3, 3}));
  EXPECT_EQ(parameters[0].storage, Storage::kChannelsLast);
  EXPECT_EQ(parameters[0].decay, Decay::kYes);
  EXPECT_FLOAT_EQ(parameters[0].initializer.value, 1.0F / 6.0F);
  EXPECT_EQ(parameters[1].shape, (Shape{32}));
  EXPECT_EQ(parameters[1].decay, Decay::kNo);
}

TEST(Conv2d, RefusesWrongShapesAndNamesBoth) {
  Conv2d layer({.in = 4, .out = 2, .kernel = 5});
  for (const Shape& shape : {Shape{3, 8, 8, 3}, Shape{3, 8, 4}, Shape{3, 4, 8, 4}}) {
    try {
      layer.plan(Device::host(), 1, shape);
      FAIL() << "accepted " << shape.to_string();
    } catch (const std::invalid_argument& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("conv2d 5x5, 4 -> 2"), std::string::npos) << message;
      EXPECT_NE(message.find(shape.to_string()), std::string::npos) << message;
    }
  }
  EXPECT_THROW(Conv2d({.in = 4, .out = 6, .kernel = 3, .groups = 3}), std::invalid_argument);
  EXPECT_THROW(Conv2d({.in = 4, .out = 6, .kernel = 0}), std::invalid_argument);
}

// Two plans of the same shape on two streams at once do not disturb each other.
TEST(Conv2d, PlansRunConcurrently) {
  const Conv2dOptions options{.in = 16, .out = 16, .kernel = 3, .padding = 1};
  Conv2d first(options);
  Conv2d second(options);
  const Shape shape{8, 16, 16, 16};
  LayerRun runs[] = {{first, shape, 1}, {second, shape, 1}};
  const auto x = random_values(shape.elements(), 1);
  for (auto& run : runs) run.set_parameter(0, random_values(16 * 9 * 16, 2));
  const auto expected = runs[0].forward(x);
  std::vector<std::thread> threads;
  std::vector<float> results[2];
  for (std::size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 20; ++repeat) results[i] = runs[i].forward(x);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(results[0], expected);
  EXPECT_EQ(results[1], expected);
}

}  // namespace
}  // namespace pipeoptim
