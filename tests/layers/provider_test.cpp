#include "layers/provider.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <tuple>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/error.h"
#include "layers/bias.h"
#include "tests/support/layer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::random_values;

// c = alpha * op(a) op(b) + beta * c, one element at a time, in double; magnitudes beside it.
void naive_gemm(const Gemm& p, std::vector<double>& c, std::vector<double>& magnitude) {
  for (std::int64_t i = 0; i < p.rows; ++i) {
    for (std::int64_t j = 0; j < p.columns; ++j) {
      double sum = 0;
      double size = 0;
      for (std::int64_t k = 0; k < p.inner; ++k) {
        const double a =
            p.transpose_a == Transpose::kYes ? p.a[k * p.leading_a + i] : p.a[i * p.leading_a + k];
        const double b =
            p.transpose_b == Transpose::kYes ? p.b[j * p.leading_b + k] : p.b[k * p.leading_b + j];
        sum += a * b;
        size += std::abs(a * b);
      }
      const auto at = static_cast<std::size_t>(i * p.leading_c + j);
      magnitude[at] = std::abs(static_cast<double>(p.alpha)) * size + std::abs(p.beta * c[at]);
      c[at] = static_cast<double>(p.alpha) * sum + static_cast<double>(p.beta) * c[at];
    }
  }
}

struct GemmCase {
  Transpose a, b;
  float alpha, beta;
  std::int64_t padding;  // of each stored row
};

class GemmTest : public testing::TestWithParam<std::tuple<GemmCase, int>> {};

TEST_P(GemmTest, BatchedMatchesLoops) {
  const auto& [form, threads] = GetParam();
  constexpr std::int64_t kRows = 13, kColumns = 21, kInner = 34, kCount = 6;
  Gemm product{.transpose_a = form.a,
               .transpose_b = form.b,
               .rows = kRows,
               .columns = kColumns,
               .inner = kInner,
               .alpha = form.alpha,
               .beta = form.beta};
  product.leading_a = (form.a == Transpose::kYes ? kRows : kInner) + form.padding;
  product.leading_b = (form.b == Transpose::kYes ? kInner : kColumns) + form.padding;
  product.leading_c = kColumns + form.padding;
  const GemmBatch batch{.count = kCount,
                        .step_a = product.leading_a * (form.a == Transpose::kYes ? kInner : kRows),
                        .step_b = product.leading_b * (form.b == Transpose::kYes ? kColumns : kInner),
                        .step_c = product.leading_c * kRows};
  const auto a = random_values(batch.step_a * kCount, 1);
  const auto b = random_values(batch.step_b * kCount, 2);
  auto c = random_values(batch.step_c * kCount, 3);
  std::vector<double> expected(c.begin(), c.end());
  std::vector<double> magnitudes(c.size(), 1e-30);
  for (std::int64_t i = 0; i < kCount; ++i) {
    Gemm one = product;
    one.a = a.data() + i * batch.step_a;
    one.b = b.data() + i * batch.step_b;
    const auto begin = static_cast<std::ptrdiff_t>(i * batch.step_c);
    std::vector<double> part(expected.begin() + begin, expected.begin() + begin + batch.step_c);
    std::vector<double> sizes(part.size(), 1e-30);
    naive_gemm(one, part, sizes);
    std::copy(part.begin(), part.end(), expected.begin() + begin);
    std::copy(sizes.begin(), sizes.end(), magnitudes.begin() + begin);
  }
  product.a = a.data();
  product.b = b.data();
  product.c = c.data();
  Stream stream(Device::host(), {.threads = threads});
  gemm_batched(stream, product, batch);
  stream.synchronize();
  EXPECT_LT(test::largest_error(c, expected, magnitudes), tolerance::kFp32Product);

  // The same products as two loops, whose inner one takes every third.
  const std::vector<float> once = c;
  c = random_values(batch.step_c * kCount, 3);
  product.c = c.data();
  gemm_batched(stream, product,
               {.count = 2,
                .step_a = 3 * batch.step_a,
                .step_b = 3 * batch.step_b,
                .step_c = 3 * batch.step_c,
                .outer = 3,
                .outer_step_a = batch.step_a,
                .outer_step_b = batch.step_b,
                .outer_step_c = batch.step_c});
  stream.synchronize();
  EXPECT_EQ(c, once);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, GemmTest,
    testing::Combine(testing::Values(GemmCase{Transpose::kNo, Transpose::kNo, 1, 0, 0},
                                     GemmCase{Transpose::kYes, Transpose::kNo, 1, 1, 0},
                                     GemmCase{Transpose::kNo, Transpose::kYes, 0.5F, 0, 5},
                                     GemmCase{Transpose::kYes, Transpose::kYes, -2, 0.25F, 3}),
                     testing::Values(1, 2)));

TEST(Gemm, FillsInDenseLeadingExtents) {
  const std::vector<float> a{1, 2, 3, 4, 5, 6};  // 2x3
  const std::vector<float> b{1, 0, 0, 1, 1, 1};  // 3x2
  std::vector<float> c{9, 9, 9, 9};
  Stream stream(Device::host());
  gemm(stream, {.rows = 2, .columns = 2, .inner = 3, .a = a.data(), .b = b.data(), .c = c.data()});
  stream.synchronize();
  EXPECT_EQ(c, (std::vector<float>{4, 5, 10, 11}));
}

TEST(Gemm, RefusesBadExtents) {
  Stream stream(Device::host());
  EXPECT_THROW(gemm(stream, {.rows = -1, .columns = 2, .inner = 3}), std::invalid_argument);
  EXPECT_THROW(gemm(stream, {.rows = 2, .columns = 2, .inner = 3, .leading_a = 2}), std::invalid_argument);
  EXPECT_THROW(gemm(stream, {.rows = 2, .columns = 2, .inner = 0}), std::invalid_argument);
  EXPECT_NO_THROW(gemm(stream, {.rows = 0, .columns = 2, .inner = 3}));
}

TEST(Convolution, OutputShapeAndRefusals) {
  const ConvolutionSpec spec{
      .input = {2, 9, 11, 4}, .out_channels = 6, .kernel = 3, .stride = 2, .padding = 1, .dilation = 2};
  EXPECT_EQ(convolution_output(spec), (Shape{2, 4, 5, 6}));
  EXPECT_EQ(convolution_weights(spec), 6 * 9 * 4);
  EXPECT_EQ(convolution_flops(spec), 2.0 * 2 * 4 * 5 * 6 * 9 * 4);
  auto bad = spec;
  bad.groups = 3;
  EXPECT_THROW(convolution_output(bad), std::invalid_argument);
  bad = spec;
  bad.input = {2, 2, 2, 4};
  EXPECT_THROW(convolution_output(bad), std::invalid_argument);
  bad = spec;
  bad.stride = 0;
  EXPECT_THROW(convolution_output(bad), std::invalid_argument);
}

TEST(Convolution, IsDescribedInMessages) {
  ConvolutionSpec spec{.input = {2, 9, 11, 4}, .out_channels = 6, .kernel = 3};
  EXPECT_EQ(describe(spec), "convolution of " + spec.input.to_string() +
                                " to 6 channels, kernel 3, stride 1, padding 0, dilation 1, 1 group");
  spec.groups = 2;
  spec.bias = true;
  spec.precision = MatrixPrecision::kTf32;
  EXPECT_TRUE(describe(spec).ends_with("2 groups, with bias, tf32"));
  spec.precision = MatrixPrecision::kBf16;
  EXPECT_TRUE(describe(spec).ends_with("2 groups, with bias, bf16"));
}

TEST(Convolution, RefusesAnotherThreadCountAndAMissingBias) {
  const auto plan = make_convolution(Device::host(), 2, {.input = {1, 4, 4, 8}, .out_channels = 8});
  Stream one(Device::host(), {.threads = 1});
  EXPECT_THROW(plan->forward(one, {}, nullptr), std::logic_error);
  Stream two(Device::host(), {.threads = 2});
  const float bias = 0;
  EXPECT_THROW(plan->forward(two, {.bias = &bias}, nullptr), std::invalid_argument);
}

TEST(Convolution, PlanningLeavesTheCallersThreadCount) {
  const int before = omp_get_max_threads();
  make_convolution(Device::host(), before + 1, {.input = {1, 4, 4, 8}, .out_channels = 8});
  EXPECT_EQ(omp_get_max_threads(), before);
}

class BiasTest : public testing::TestWithParam<std::tuple<Rows, int>> {};

TEST_P(BiasTest, GradientIsTheColumnSumForEveryThreadCount) {
  const auto& [extents, threads] = GetParam();
  const auto values = random_values(extents.rows * extents.columns, 4);
  std::vector<double> expected(static_cast<std::size_t>(extents.columns));
  std::vector<double> magnitudes(expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    expected[i % expected.size()] += values[i];
    magnitudes[i % expected.size()] += std::abs(values[i]);
  }
  const auto run = [&](int count, GradientMode mode, std::vector<float> into) {
    Stream stream(Device::host(), {.threads = count});
    Memory workspace(Device::host(), bias_gradient_workspace(extents));
    sum_bias_gradient(stream, extents, values.data(), into.data(), mode, workspace.data());
    stream.synchronize();
    return into;
  };
  const std::vector<float> garbage(expected.size(), 1e30F);
  const auto stored = run(threads, GradientMode::kStore, garbage);
  EXPECT_LT(test::largest_error(stored, expected, magnitudes), tolerance::kFp32Product);
  EXPECT_EQ(stored, run(1, GradientMode::kStore, garbage));
  const auto added = run(threads, GradientMode::kAdd, stored);
  for (std::size_t i = 0; i < added.size(); ++i) EXPECT_EQ(added[i], 2 * stored[i]);
}

INSTANTIATE_TEST_SUITE_P(Extents, BiasTest,
                         testing::Combine(testing::Values(Rows{1, 1}, Rows{7, 10}, Rows{64, 16}, Rows{65, 33},
                                                          Rows{20000, 5}),
                                          testing::Values(1, 2)));

#ifndef PIPEOPTIM_WITH_CUDA
TEST(Provider, WithoutCudaSaysSo) {
  EXPECT_THROW(make_convolution(Device::cuda(0), 1, {.input = {1, 4, 4, 8}, .out_channels = 8}), DeviceError);
}
#endif

}  // namespace
}  // namespace pipeoptim
