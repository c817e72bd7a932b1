// Linear plans by themselves, on each backend: rows that lie apart, outputs that are added to.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "layers/provider.h"
#include "tests/support/backends.h"
#include "tests/support/layer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::random_values;

// A matrix whose rows lie `step` apart, in host memory; the gaps are part of the values.
struct Matrix {
  std::int64_t rows, columns, step;
  std::vector<float> values;

  Matrix(std::int64_t r, std::int64_t c, std::int64_t s, unsigned seed)
      : rows(r), columns(c), step(s), values(random_values(r * s, seed)) {}
  double at(std::int64_t r, std::int64_t c) const { return values[static_cast<std::size_t>(r * step + c)]; }
};

// Each value of `actual` against value(row, column), which also gives the sum of its absolute terms. What
// lies between the rows has to be what it was.
template <typename Value>
void expect_matrix(const std::vector<float>& actual, const Matrix& before, const Value& value) {
  for (std::int64_t r = 0; r < before.rows; ++r) {
    for (std::int64_t c = 0; c < before.step; ++c) {
      const auto at = static_cast<std::size_t>(r * before.step + c);
      if (c >= before.columns) {
        ASSERT_EQ(actual[at], before.values[at]) << "behind row " << r;
        continue;
      }
      const auto [expected, size] = value(r, c);
      ASSERT_NEAR(actual[at], expected, tolerance::kFp32Product * (size + 1e-30)) << r << ' ' << c;
    }
  }
}

struct Sum {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

using LinearPlans = test::BackendTest;

TEST_P(LinearPlans, RowsApartAndAddedTo) {
  constexpr std::int64_t kRows = 5, kIn = 24, kOut = 40;
  const LinearSpec spec{.rows = kRows,
                        .in = kIn,
                        .out = kOut,
                        .activation = Activation::kRelu,
                        .output = GradientMode::kAdd,
                        .input_step = 3 * kIn,
                        .output_step = 2 * kOut};
  const Matrix x(kRows, kIn, spec.input_step, 1), w(kOut, kIn, kIn, 2), y(kRows, kOut, spec.output_step, 3);
  const auto plan = make_linear(device(), 1, spec);
  Memory workspace(device(), plan->workspace_bytes());
  auto input = on_device(x.values), weights = on_device(w.values), output = on_device(y.values),
       gradient = on_device(y.values);
  auto dx = on_device(x.values), dw = on_device(w.values);
  Stream stream(device(), {.threads = 1});
  plan->forward(stream, {.input = input.data(), .weights = weights.data(), .output = output.data()},
                workspace.data());
  plan->backward_input(
      stream, {.weights = weights.data(), .output_gradient = gradient.data(), .input_gradient = dx.data()},
      workspace.data());
  plan->backward_weights(stream,
                         {.input = input.data(),
                          .output_gradient = gradient.data(),
                          .weight_gradient = dw.data(),
                          .mode = GradientMode::kAdd},
                         workspace.data());
  stream.synchronize();
  expect_matrix(on_host(output), y, [&](std::int64_t r, std::int64_t c) {
    Sum sum;
    sum.add(y.at(r, c));
    for (std::int64_t i = 0; i < kIn; ++i) sum.add(x.at(r, i) * w.at(c, i));
    sum.value = std::max(sum.value, 0.0);
    return sum;
  });
  expect_matrix(on_host(dx), x, [&](std::int64_t r, std::int64_t c) {
    Sum sum;
    for (std::int64_t o = 0; o < kOut; ++o) sum.add(y.at(r, o) * w.at(o, c));
    return sum;
  });
  expect_matrix(on_host(dw), w, [&](std::int64_t r, std::int64_t c) {
    Sum sum;
    sum.add(w.at(r, c));
    for (std::int64_t n = 0; n < kRows; ++n) sum.add(y.at(n, r) * x.at(n, c));
    return sum;
  });
}

TEST_P(LinearPlans, BiasGradientsAddUp) {
  constexpr std::int64_t kRows = 33, kIn = 7, kOut = 20;
  const auto plan = make_linear(device(), 1, {.rows = kRows, .in = kIn, .out = kOut, .bias = Bias::kYes});
  Memory workspace(device(), plan->workspace_bytes());
  const Matrix dy(kRows, kOut, kOut, 1), before(1, kOut, kOut, 2);
  auto input = on_device(random_values(kRows * kIn, 3)), gradient = on_device(dy.values);
  auto dw = on_device(random_values(kOut * kIn, 4)), db = on_device(before.values);
  Stream stream(device(), {.threads = 1});
  const auto run = [&](GradientMode mode) {
    plan->backward_weights(stream,
                           {.input = input.data(),
                            .output_gradient = gradient.data(),
                            .weight_gradient = dw.data(),
                            .bias_gradient = db.data(),
                            .mode = mode},
                           workspace.data());
    stream.synchronize();
  };
  for (const bool adds : {true, false}) {  // adding to what is there, then overwriting that
    run(adds ? GradientMode::kAdd : GradientMode::kStore);
    expect_matrix(on_host(db), before, [&](std::int64_t, std::int64_t c) {
      Sum sum;
      if (adds) sum.add(before.at(0, c));
      for (std::int64_t n = 0; n < kRows; ++n) sum.add(dy.at(n, c));
      return sum;
    });
  }
}

TEST(LinearPlan, RefusesBadSpecs) {
  const LinearSpec good{.rows = 2, .in = 3, .out = 4};
  for (const auto& spoil : {+[](LinearSpec& spec) { spec.rows = 0; }, +[](LinearSpec& spec) { spec.in = -1; },
                            +[](LinearSpec& spec) { spec.input_step = 2; },
                            +[](LinearSpec& spec) {
                              spec.bias = Bias::kYes;
                              spec.output_step = 5;
                            }}) {
    LinearSpec bad = good;
    spoil(bad);
    EXPECT_THROW(make_linear(Device::host(), 1, bad), std::invalid_argument);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearPlans, testing::ValuesIn(test::built_backends()),
                         test::backend_name);

}  // namespace
}  // namespace pipeoptim
