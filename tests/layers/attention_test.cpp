#include "layers/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "tests/support/bf16.h"
#include "tests/support/finite_difference.h"
#include "tests/support/halves.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::PlannedLayer;
using test::random_values;

using Matrix = std::vector<double>;

// What a factor is: the value itself, or the nearest one in bf16.
using Rounding = double (*)(double);
double exact(double value) { return value; }
double to_nearest_bf16(double value) {
  return static_cast<double>(test::nearest_bf16(static_cast<float>(value)));
}
Matrix rounded(Matrix values, Rounding round) {
  for (double& value : values) value = round(value);
  return values;
}
Matrix rounded(std::span<const float> values, Rounding round) {
  return rounded(Matrix(values.begin(), values.end()), round);
}

// y = x w^T + b for rows of x.
Matrix project(const Matrix& x, const Matrix& w, std::span<const float> b) {
  const std::size_t out = b.size(), in = w.size() / out;
  Matrix y(x.size() / in * out);
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] = static_cast<double>(b[i % out]);
    for (std::size_t c = 0; c < in; ++c) y[i] += x[i / out * in + c] * w[i % out * in + c];
  }
  return y;
}

// Gradients of the same.
struct ProjectBackward {
  Matrix dx, dw, db;
  ProjectBackward(const Matrix& x, const Matrix& w, const Matrix& dy, std::size_t out)
      : dx(x.size()), dw(w.size()), db(out) {
    const std::size_t in = w.size() / out;
    for (std::size_t i = 0; i < dy.size(); ++i) {
      db[i % out] += dy[i];
      for (std::size_t c = 0; c < in; ++c) {
        dx[i / out * in + c] += dy[i] * w[i % out * in + c];
        dw[i % out * in + c] += dy[i] * x[i / out * in + c];
      }
    }
  }
};

// How the factors of the maps and those of the heads are rounded.
struct Roundings {
  Rounding maps = exact, heads = exact;
};

// The whole layer in double, one score at a time.
struct Naive {
  Matrix y, dx, dw_attention, db_attention, dw_projection, db_projection;

  Naive(const Shape& shape, std::size_t heads, PlannedLayer& layer, const std::vector<float>& input,
        const std::vector<float>& output_gradient, const Roundings& round) {
    const auto records = static_cast<std::size_t>(shape[0]), length = static_cast<std::size_t>(shape[1]);
    const auto features = static_cast<std::size_t>(shape[2]), width = features / heads;
    const Matrix x = rounded(input, round.maps), dy = rounded(output_gradient, round.maps);
    const Matrix attend = rounded(layer.weights(0), round.maps);
    const Matrix projection = rounded(layer.weights(2), round.maps);
    const Matrix qkv = rounded(project(x, attend, layer.weights(1)), round.heads);
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
          }
          const double largest = *std::max_element(p.begin(), p.end());
          for (double& value : p) {
            value = std::exp((value - largest) * scale);
            sum += value;
          }
          for (std::size_t s = 0; s <= t; ++s) {
            const double factor = round.heads(p[s]) / sum;
            p[s] /= sum;
            for (std::size_t c = 0; c < width; ++c)
              mixed[(n * length + t) * features + h * width + c] += factor * qkv[at(n, s, 2, h) + c];
          }
          probabilities.push_back(std::move(p));
        }
      }
    }
    mixed = rounded(std::move(mixed), round.maps);
    y = project(mixed, projection, layer.weights(3));
    ProjectBackward of_projection(mixed, projection, dy, features);
    of_projection.dx = rounded(std::move(of_projection.dx), round.heads);
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
              dqkv[at(n, s, 2, h) + c] += round.heads(p[s]) * gradient[c];
            }
            product += p[s] * dp[s];
          }
          for (std::size_t s = 0; s <= t; ++s) {
            const double ds = round.heads(p[s] * (dp[s] - product)) * scale;
            for (std::size_t c = 0; c < width; ++c) {
              dqkv[at(n, t, 0, h) + c] += ds * qkv[at(n, s, 1, h) + c];
              dqkv[at(n, s, 1, h) + c] += ds * qkv[at(n, t, 0, h) + c];
            }
          }
        }
      }
    }
    ProjectBackward of_attention(x, attend, rounded(std::move(dqkv), round.maps), 3 * features);
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
  MatrixPrecision precision = MatrixPrecision::kFp32;
};

LayerPtr make_attention(const Case& of) {
  auto layer =
      std::make_unique<CausalSelfAttention>(AttentionOptions{.features = of.input.last(), .heads = of.heads});
  layer->set_precision(of.precision);
  return layer;
}

class AttentionTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (bf16() && !test::multiplies_bf16(Device::host())) GTEST_SKIP() << "no bf16";
  }
  bool bf16() const { return GetParam().precision == MatrixPrecision::kBf16; }
  Roundings roundings() const {
    const std::int64_t width = GetParam().input.last() / GetParam().heads;
    const bool heads = host::AttentionHeads::handles(width, GetParam().precision);
    return {bf16() ? to_nearest_bf16 : exact, bf16() && heads ? to_nearest_bf16 : exact};
  }
  // Such that bf16 holds them exactly where the layer rounds them.
  std::vector<float> values(unsigned seed, float deviation = 1.0F) const {
    return test::as_factor(random_values(GetParam().input.elements(), seed, deviation), GetParam().precision);
  }
};

TEST_P(AttentionTest, MatchesLoopsInDouble) {
  const auto& [shape, heads, threads, precision] = GetParam();
  PlannedLayer layer(make_attention(GetParam()), shape, {.threads = threads});
  // Scores of size 1, so that all positions count.
  const auto x = values(1, std::min(0.5F, 2 / std::sqrt(static_cast<float>(shape.last())))), dy = values(2);
  const Naive naive(shape, static_cast<std::size_t>(heads), layer, x, dy, roundings());
  const double bound = bf16() ? tolerance::kBf16Attention : tolerance::kAttention;
  EXPECT_LT(test::relative_error(layer.forward(x), naive.y), bound);
  EXPECT_LT(test::relative_error(layer.backward(dy), naive.dx), bound);
  EXPECT_LT(test::relative_error(layer.gradients(0), naive.dw_attention), bound);
  EXPECT_LT(test::relative_error(layer.gradients(1), naive.db_attention), bound);
  EXPECT_LT(test::relative_error(layer.gradients(2), naive.dw_projection), bound);
  EXPECT_LT(test::relative_error(layer.gradients(3), naive.db_projection), bound);
  layer.backward(dy, GradientMode::kAdd);
  Matrix twice = naive.dw_attention;
  for (double& value : twice) value *= 2;
  EXPECT_LT(test::relative_error(layer.gradients(0), twice), bound);
}

TEST_P(AttentionTest, RepeatsItsBits) {
  const Shape& shape = GetParam().input;
  PlannedLayer layer(make_attention(GetParam()), shape, {.threads = GetParam().threads});
  const auto x = values(9), dy = values(10);
  const auto y = layer.forward(x), dx = layer.backward(dy);
  const auto gradients = layer.all_gradients();
  layer.forward(dy);  // other values in stash and workspace
  layer.backward(x);
  EXPECT_TRUE(test::same_bits(layer.forward(x), y));
  EXPECT_TRUE(test::same_bits(layer.backward(dy), dx));
  EXPECT_EQ(layer.all_gradients(), gradients);
}

TEST_P(AttentionTest, HalvesMayRunApart) {
  const Shape& shape = GetParam().input;
  test::expect_same_halves([] { return make_attention(GetParam()); }, shape,
                           random_values(shape.elements(), 3), random_values(shape.elements(), 4));
}

TEST_P(AttentionTest, SeesNoLaterPosition) {
  const Shape& shape = GetParam().input;
  PlannedLayer layer(make_attention(GetParam()), shape);
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

// Lengths below, at and above the blocks of queries (32, in vectors of 16), odd ones; heads of one vector up
// to five; more heads than threads and fewer; a width that the host's tiles are not made for.
std::vector<Case> tiled(MatrixPrecision precision) {
  return {{{1, 1, 16}, 1, 2, precision},  {{3, 7, 32}, 2, 1, precision},  {{2, 16, 48}, 1, 1, precision},
          {{2, 33, 96}, 3, 2, precision}, {{1, 64, 80}, 1, 1, precision}, {{2, 130, 128}, 2, 2, precision},
          {{2, 33, 48}, 2, 2, precision}};
}
INSTANTIATE_TEST_SUITE_P(Tiled, AttentionTest, testing::ValuesIn(tiled(MatrixPrecision::kFp32)));
INSTANTIATE_TEST_SUITE_P(Bf16, AttentionTest, testing::ValuesIn(tiled(MatrixPrecision::kBf16)));

// The bits of the outputs and gradients of host::AttentionHeads.
std::vector<std::byte> bits_of_heads(const host::HeadExtents& extents, MatrixPrecision precision,
                                     int threads) {
  const host::AttentionHeads heads(threads, extents, precision);
  const std::int64_t features = extents.heads * extents.width;
  const Shape one{extents.records, extents.length, features}, three{one[0], one[1], 3 * features};
  const auto random = [&](const Shape& shape, unsigned seed) {
    Memory memory(Device::host(), tensor_bytes(shape, heads.type()));
    const std::vector<float> values = random_values(shape.elements(), seed);
    const std::vector<Bf16> rounded = test::bf16_copy(values);
    const bool rounds = heads.type() == ElementType::kBf16;
    std::memcpy(memory.data(), rounds ? static_cast<const void*>(rounded.data()) : values.data(),
                tensor_bytes(shape, heads.type()));
    return memory;
  };
  Memory qkv = random(three, 11), gradient = random(one, 12), output = random(one, 13),
         qkv_gradient = random(three, 14), workspace(Device::host(), heads.workspace_bytes());
  std::vector<float> normalizers(static_cast<std::size_t>(2 * extents.heads * one[0] * one[1]));
  const auto view = [&](const Memory& memory) { return Tensor::at(memory.data(), heads.type(), {}); };
  const host::AttentionHeads::Operands operands{ConstTensor(view(qkv)).factor(), normalizers.data()};
  Stream stream(Device::host(), {.threads = threads});
  heads.forward(stream, operands, view(output).destination(), workspace.data());
  heads.backward(stream, operands, ConstTensor(view(gradient)).factor(), view(qkv_gradient).destination(),
                 workspace.data());
  stream.synchronize();
  std::vector<std::byte> bits(output.data(), output.data() + tensor_bytes(one, heads.type()));
  bits.insert(bits.end(), qkv_gradient.data(), qkv_gradient.data() + tensor_bytes(three, heads.type()));
  return bits;
}

TEST(Attention, TilesHeadsByAnyNumberOfThreads) {
  constexpr host::HeadExtents kExtents{.records = 1, .length = 45, .heads = 3, .width = 32};
  for (const MatrixPrecision precision : {MatrixPrecision::kFp32, MatrixPrecision::kBf16}) {
    if (!host::AttentionHeads::handles(kExtents.width, precision)) continue;
    const auto once = bits_of_heads(kExtents, precision, 1);
    EXPECT_EQ(bits_of_heads(kExtents, precision, 2), once);
    EXPECT_EQ(bits_of_heads(kExtents, precision, 4), once);
  }
}

// Scores some hundreds apart: probabilities still add up to 1, so that equal values come out as they are, and
// their gradients add up to the outputs'.
TEST(Attention, TilesHeadsOfLargeScores) {
  constexpr host::HeadExtents kExtents{.records = 1, .length = 45, .heads = 1, .width = 32};
  constexpr std::size_t kLength = 45, kWidth = 32, kRow = 3 * kWidth;
  if (!host::AttentionHeads::handles(kExtents.width, MatrixPrecision::kFp32)) GTEST_SKIP() << "no AVX-512";
  std::vector<float> qkv = random_values(kLength * kRow, 21, 30), dy = random_values(kLength * kWidth, 22);
  for (std::size_t i = 0; i < qkv.size(); ++i) {
    if (i % kRow >= 2 * kWidth) qkv[i] = static_cast<float>(i % kWidth + 1);
  }
  std::vector<float> y(dy.size()), gradient(qkv.size()), normalizers(2 * kLength);
  const host::AttentionHeads heads(1, kExtents, MatrixPrecision::kFp32);
  Memory workspace(Device::host(), heads.workspace_bytes());
  Stream stream(Device::host(), {.threads = 1});
  heads.forward(stream, {qkv.data(), normalizers.data()}, y.data(), workspace.data());
  heads.backward(stream, {qkv.data(), normalizers.data()}, dy.data(), gradient.data(), workspace.data());
  stream.synchronize();
  for (std::size_t c = 0; c < kWidth; ++c) {
    const double value = static_cast<double>(c + 1);
    double given = 0, passed = 0, size = 0;
    for (std::size_t t = 0; t < kLength; ++t) {
      EXPECT_NEAR(y[t * kWidth + c], value, tolerance::kAttention * value);
      given += dy[t * kWidth + c];
      size += std::abs(dy[t * kWidth + c]);
      passed += gradient[t * kRow + 2 * kWidth + c];
    }
    EXPECT_NEAR(passed, given, tolerance::kAttention * size) << c;
  }
  EXPECT_TRUE(
      std::all_of(gradient.begin(), gradient.end(), [](float value) { return std::isfinite(value); }));
}

TEST(Attention, MatchesDifferences) {
  auto layer = planned<CausalSelfAttention>(Shape{2, 5, 6}, {}, AttentionOptions{.features = 6, .heads = 2});
  EXPECT_LT(test::gradient_error(layer, random_values(60, 6, 0.5F)), tolerance::kFiniteDifference);
}

TEST(Attention, ShowsBrokenNumbers) {
  for (const MatrixPrecision precision : {MatrixPrecision::kFp32, MatrixPrecision::kBf16}) {
    if (precision == MatrixPrecision::kBf16 && !test::multiplies_bf16(Device::host())) continue;
    const Case of{{1, 8, 32}, 2, 1, precision};
    PlannedLayer layer(make_attention(of), of.input);
    auto x = random_values(of.input.elements(), 7);
    x[32] = std::numeric_limits<float>::quiet_NaN();  // of position 1
    const auto y = layer.forward(x);
    EXPECT_TRUE(std::isnan(y[32]));
    EXPECT_TRUE(std::isnan(y.back()));
    const auto dx = layer.backward(random_values(of.input.elements(), 8));
    EXPECT_TRUE(std::isnan(dx[32]));
  }
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
