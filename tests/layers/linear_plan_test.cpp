// Linear plans by themselves, on each backend.
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

struct Sum {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

using LinearPlans = test::BackendTest;

TEST_P(LinearPlans, BiasGradientsAddUp) {
  constexpr std::int64_t kRows = 33, kIn = 7, kOut = 20;
  const auto plan = make_linear(device(), 1, {.rows = kRows, .in = kIn, .out = kOut, .bias = Bias::kYes});
  Memory workspace(device(), plan->workspace_bytes());
  const auto dy = random_values(kRows * kOut, 1), before = random_values(kOut, 2);
  auto input = on_device(random_values(kRows * kIn, 3)), gradient = on_device(dy);
  auto dw = on_device(random_values(kOut * kIn, 4)), db = on_device(before);
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
    const auto sums = on_host(db);
    for (std::size_t c = 0; c < kOut; ++c) {
      Sum sum;
      if (adds) sum.add(before[c]);
      for (std::size_t n = 0; n < kRows; ++n) sum.add(dy[n * kOut + c]);
      EXPECT_NEAR(sums[c], sum.value, tolerance::kFp32Product * sum.size) << c;
    }
  }
}

TEST(LinearPlan, RefusesBadSpecs) {
  const LinearSpec good{.rows = 2, .in = 3, .out = 4};
  for (const auto& spoil : {+[](LinearSpec& spec) { spec.rows = 0; }, +[](LinearSpec& spec) { spec.in = -1; },
                            +[](LinearSpec& spec) { spec.out = 0; }}) {
    LinearSpec bad = good;
    spoil(bad);
    EXPECT_THROW(make_linear(Device::host(), 1, bad), std::invalid_argument);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearPlans, testing::ValuesIn(test::built_backends()),
                         test::backend_name);

}  // namespace
}  // namespace pipeoptim
