#include "layers/linear.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
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
  std::int64_t rows, in, out;
  Bias bias;
  Activation activation = Activation::kNone;
};

// Results of the three directions by plain loops in double, with the sums of absolute terms.
struct Naive {
  std::vector<double> y, y_size, dx, dx_size, dw, dw_size, db, db_size;

  // The bias gradient is the sum of the output gradient as it is, its other factor that of the products.
  Naive(const Case& c, const std::vector<float>& x, const std::vector<float>& w, const std::vector<float>& b,
        const std::vector<float>& dy, const std::vector<float>& dy_factor) {
    const auto zeros = [](std::int64_t n) { return std::vector<double>(static_cast<std::size_t>(n)); };
    y = y_size = zeros(c.rows * c.out);
    dx = dx_size = zeros(c.rows * c.in);
    dw = dw_size = zeros(c.out * c.in);
    db = db_size = zeros(c.out);
    const auto add = [](std::vector<double>& sum, std::vector<double>& size, std::int64_t at, double term) {
      sum[static_cast<std::size_t>(at)] += term;
      size[static_cast<std::size_t>(at)] += std::abs(term);
    };
    for (std::int64_t n = 0; n < c.rows; ++n) {
      for (std::int64_t o = 0; o < c.out; ++o) {
        if (c.bias == Bias::kYes) add(y, y_size, n * c.out + o, b[static_cast<std::size_t>(o)]);
        for (std::int64_t i = 0; i < c.in; ++i) {
          const double weight = w[static_cast<std::size_t>(o * c.in + i)];
          add(y, y_size, n * c.out + o, weight * x[static_cast<std::size_t>(n * c.in + i)]);
        }
        double& output = y[static_cast<std::size_t>(n * c.out + o)];
        const bool blocked = c.activation == Activation::kRelu && output < 0;
        if (blocked) output = 0;
        const auto at = static_cast<std::size_t>(n * c.out + o);
        const double g = blocked ? 0 : dy_factor[at];
        add(db, db_size, o, blocked ? 0 : dy[at]);
        for (std::int64_t i = 0; i < c.in; ++i) {
          const double weight = w[static_cast<std::size_t>(o * c.in + i)];
          const double value = x[static_cast<std::size_t>(n * c.in + i)];
          add(dx, dx_size, n * c.in + i, weight * g);
          add(dw, dw_size, o * c.in + i, value * g);
        }
      }
    }
  }
};

class LinearTest : public testing::TestWithParam<std::tuple<Case, int, MatrixPrecision>> {
 protected:
  const Case& c() const { return std::get<0>(GetParam()); }
  std::vector<float> x = random_values(c().rows * c().in, 1);
  std::vector<float> w = random_values(c().out * c().in, 2);
  std::vector<float> b = random_values(c().out, 3);
  std::vector<float> dy = random_values(c().rows * c().out, 4);
  Linear layer{c().in, c().out, {.bias = c().bias, .activation = c().activation}};
  std::optional<LayerRun> planned;

  MatrixPrecision precision() const { return std::get<2>(GetParam()); }
  LayerRun& run() { return *planned; }
  void SetUp() override {
    if (precision() == MatrixPrecision::kBf16 && !test::multiplies_bf16(Device::host())) {
      GTEST_SKIP() << "no bf16";
    }
    layer.set_precision(precision());
    planned.emplace(layer, Shape{c().rows, c().in}, std::get<1>(GetParam()));
    run().set_parameter(0, w);
    if (c().bias == Bias::kYes) run().set_parameter(1, b);
  }
};

TEST_P(LinearTest, MatchesLoops) {
  using test::as_factor;
  const Naive naive(c(), as_factor(x, precision()), as_factor(w, precision()), b, dy,
                    as_factor(dy, precision()));
  EXPECT_LT(largest_error(run().forward(x), naive.y, naive.y_size), tolerance::kFp32Product);
  EXPECT_LT(largest_error(run().backward(dy), naive.dx, naive.dx_size), tolerance::kFp32Product);
  EXPECT_LT(largest_error(run().gradient(0), naive.dw, naive.dw_size), tolerance::kFp32Product);
  if (c().bias == Bias::kYes) {
    EXPECT_LT(largest_error(run().gradient(1), naive.db, naive.db_size), tolerance::kFp32Product);
  }
}

TEST_P(LinearTest, GradientsAddUp) {
  run().forward(x);
  run().backward(dy);
  std::vector<std::vector<float>> once;
  const std::size_t parameters = c().bias == Bias::kYes ? 2 : 1;
  for (std::size_t i = 0; i < parameters; ++i) once.push_back(run().gradient(i));
  run().backward(dy, GradientMode::kAdd);
  for (std::size_t p = 0; p < parameters; ++p) {
    const auto twice = run().gradient(p);
    for (std::size_t i = 0; i < twice.size(); ++i) {
      EXPECT_NEAR(twice[i], 2 * once[p][i],
                  1e-30 + tolerance::kFp32Product * std::abs(2 * once[p][i]) +
                      tolerance::kFp32Product * static_cast<double>(c().rows));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LinearTest,
    testing::Combine(testing::Values(Case{1, 1, 1, Bias::kYes}, Case{7, 5, 3, Bias::kNo},
                                     Case{33, 17, 10, Bias::kYes}, Case{130, 64, 48, Bias::kYes},
                                     Case{9, 40, 1, Bias::kNo, Activation::kRelu},
                                     Case{67, 33, 50, Bias::kYes, Activation::kRelu},
                                     Case{520, 64, 80, Bias::kYes, Activation::kRelu},
                                     Case{40, 1024, 1024, Bias::kYes}, Case{2056, 256, 32, Bias::kNo},
                                     Case{2056, 32, 256, Bias::kNo}),
                     testing::Values(1, 2), testing::Values(MatrixPrecision::kFp32, MatrixPrecision::kBf16)));

TEST(Linear, CentralDifferences) {
  Linear layer(6, 4);
  LayerRun run(layer, {5, 6}, 1);
  auto x = random_values(30, 1);
  const auto by = random_values(20, 2);
  std::vector<std::vector<float>> parameters{random_values(24, 3), random_values(4, 4)};
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
  constexpr double kTerms = 50;  // about the sum of the absolute terms of the loss
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

TEST(Linear, DescribesItsParameters) {
  const auto parameters = Linear(16, 3).parameters();
  ASSERT_EQ(parameters.size(), 2U);
  EXPECT_EQ(parameters[0].name, "weight");
  EXPECT_EQ(parameters[0].shape, (Shape{3, 16}));
  EXPECT_EQ(parameters[0].initializer.kind, Initializer::Kind::kUniform);
  EXPECT_EQ(parameters[0].initializer.value, 0.25F);
  EXPECT_EQ(parameters[0].decay, Decay::kYes);
  EXPECT_EQ(parameters[1].name, "bias");
  EXPECT_EQ(parameters[1].shape, (Shape{3}));
  EXPECT_EQ(parameters[1].initializer.value, 0.25F);
  EXPECT_EQ(parameters[1].decay, Decay::kNo);
  EXPECT_EQ(Linear(16, 3, {.bias = Bias::kNo}).parameters().size(), 1U);
}

TEST(Linear, TakesSequencesAsRows) {
  Linear layer(4, 2);
  const LayerPlan plan = layer.plan(Device::host(), 1, {3, 5, 4});
  EXPECT_EQ(plan.output, (Shape{3, 5, 2}));
  EXPECT_EQ(plan.forward_flops, 2.0 * 15 * 8);
}

TEST(Linear, RefusesWrongShapesAndNamesBoth) {
  Linear layer(4, 2);
  for (const Shape& shape : {Shape{3, 5}, Shape{4}, Shape{2, 1, 1, 4}, Shape{0, 4}}) {
    try {
      layer.plan(Device::host(), 1, shape);
      FAIL() << "accepted " << shape.to_string();
    } catch (const std::invalid_argument& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find("linear 4 -> 2"), std::string::npos) << message;
      EXPECT_NE(message.find("Nx4"), std::string::npos) << message;
      EXPECT_NE(message.find(shape.to_string()), std::string::npos) << message;
    }
  }
  EXPECT_THROW(Linear(0, 2), std::invalid_argument);
  Stream stream(Device::host());
  EXPECT_THROW(Linear(4, 2).forward(
                   {.stream = stream, .weights = {}, .states = {}, .input = {}, .output = {}, .random = {}}),
               std::logic_error);
}

}  // namespace
}  // namespace pipeoptim
