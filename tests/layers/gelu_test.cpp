// GELU on values in bf16: every one of them.
#include "layers/host/gelu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "tests/support/bf16.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::host {
namespace {

using Values = std::vector<Bf16>;

double cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double value(double x) { return std::isinf(x) ? std::max(x, 0.0) : x * cdf(x); }
double slope(double x) {
  return std::isinf(x) ? cdf(x) : cdf(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi);
}

class HostGelu : public testing::Test {
 protected:
  void SetUp() override {
    if (!handles_gelu(16)) GTEST_SKIP() << "no bf16";
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) x_.push_back({static_cast<std::uint16_t>(bits)});
  }

  Values forward(int threads) const {
    Values y(x_.size());
    Stream stream(Device::host(), {.threads = threads});
    gelu(stream, count(), x_.data(), y.data());
    stream.synchronize();
    return y;
  }
  Values backward(int threads, float dy) const {
    Values dx(x_.size(), test::bf16_copy({dy})[0]);
    Stream stream(Device::host(), {.threads = threads});
    gelu_gradient(stream, count(), x_.data(), dx.data(), dx.data());  // in the place of dy
    stream.synchronize();
    return dx;
  }
  std::int64_t count() const { return static_cast<std::int64_t>(x_.size()); }

  void expect_near(const Values& results, double factor, double (*function)(double)) const {
    for (std::size_t i = 0; i < x_.size(); ++i) {
      const double x = to_float(x_[i]), result = to_float(results[i]), wanted = factor * function(x);
      if (std::isnan(x)) {
        ASSERT_TRUE(std::isnan(result)) << "a broken value must reach the loss";
      } else if (std::isinf(wanted)) {
        ASSERT_EQ(result, wanted) << x;
      } else {
        const double bound = tolerance::kBf16Result * std::abs(wanted) + factor * tolerance::kBf16Gelu;
        ASSERT_NEAR(result, wanted, bound) << x;
      }
    }
  }

  Values x_;
};

TEST_F(HostGelu, MatchesItsFormula) { expect_near(forward(1), 1, value); }

TEST_F(HostGelu, GradientMatchesItsFormula) { expect_near(backward(1, 3.0F), 3, slope); }

TEST_F(HostGelu, ThreadsChangeNoBit) {
  const auto bits = [](const Values& values) {
    std::vector<std::uint16_t> all;
    for (const Bf16 value : values) all.push_back(value.bits);
    return all;
  };
  EXPECT_EQ(bits(forward(3)), bits(forward(1)));
  EXPECT_EQ(bits(backward(3, 1.0F)), bits(backward(1, 1.0F)));
}

TEST_F(HostGelu, IsForWholeVectors) {
  EXPECT_FALSE(handles_gelu(40));
  EXPECT_TRUE(handles_gelu(48));
}

}  // namespace
}  // namespace pipeoptim::host
