#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/attention.h"
#include "layers/bias.h"
#include "layers/functions.h"
#include "layers/lanes.h"
#include "layers/provider.h"
#include "layers/tiles.h"

namespace pipeoptim {
namespace {

constexpr std::int64_t kMostBlocks = 4;  // of rows: leaves out 3/8 of the products, of the 1/2 that is hidden
constexpr std::int64_t kHostBlock = 64, kCudaBlock = 256;     // rows of a block at least
constexpr std::int64_t kCudaScores = std::int64_t{32} << 20;  // elements of one workspace array, about

using Totals = Lanes<float, kTileLanes>;

// Columns that a block of rows computes: those up to its last row.
PO_HD std::int64_t block_end(std::int64_t row, std::int64_t block, std::int64_t length) {
  const std::int64_t end = (row / block + 1) * block;
  return end < length ? end : length;
}

// One row of scores to probabilities in place; what the mask hides becomes 0. Keeps the logarithm of the sum.
struct Softmax {
  float* scores;
  float* normalizers;
  std::int64_t length, block;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    float* const x = scores + row * length;
    const std::int64_t t = row % length, end = block_end(t, block, length);
    const float first = x[0];
    Totals highest(first);
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) {
      const auto score = load_tile<kWidth>(x + c);
      const auto shown =
          static_cast<std::int32_t>(t - c);  // the last one of the tile; 32 bits, as the values
      for (int v = 0; v < kWidth; ++v) {
        const float value = v <= shown ? score.value[v] : first;
        highest.value[v] = value > highest.value[v] ? value : highest.value[v];
      }
    });
    const float largest = highest.reduce(team, LargerOf{});
    Totals sums(0);
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) {
      const auto score = load_tile<kWidth>(x + c);
      const auto shown = static_cast<std::int32_t>(t - c);
      Pack<kWidth> out;
      for (int v = 0; v < kWidth; ++v) {
        const float value = exp_of(score.value[v] - largest);
        out.value[v] = v <= shown ? value : 0.0F;
        sums.value[v] += out.value[v];
      }
      store_tile(x + c, out);
    });
    const float sum = sums.reduce(team, SumOf{});
    const float inverse = 1.0F / sum;
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) {
      const auto value = load_tile<kWidth>(x + c);
      Pack<kWidth> out;
      for (int v = 0; v < kWidth; ++v) out.value[v] = value.value[v] * inverse;
      store_tile(x + c, out);
    });
    if (team.rank() == 0) normalizers[row] = largest + logf(sum);
  }
};

// One row: scores to probabilities p, and the gradients of probabilities to those of scores, p (dp - sum p
// dp).
struct SoftmaxGradient {
  float* scores;
  float* gradients;
  const float* normalizers;
  std::int64_t length, block;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    float* const x = scores + row * length;
    float* const dx = gradients + row * length;
    const std::int64_t t = row % length, end = block_end(t, block, length);
    const float normalizer = normalizers[row];
    Totals products(0);
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) {
      const auto score = load_tile<kWidth>(x + c), gradient = load_tile<kWidth>(dx + c);
      const auto shown = static_cast<std::int32_t>(t - c);
      Pack<kWidth> out;
      for (int v = 0; v < kWidth; ++v) {
        const float exponent = score.value[v] - normalizer;
        const float p = exp_of(exponent > 0 ? 0.0F : exponent);  // above 0 by rounding, or hidden
        out.value[v] = v <= shown ? p : 0.0F;
        products.value[v] += out.value[v] * gradient.value[v];
      }
      store_tile(x + c, out);
    });
    const float product = products.reduce(team, SumOf{});
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) {
      const auto p = load_tile<kWidth>(x + c), gradient = load_tile<kWidth>(dx + c);
      Pack<kWidth> out;
      for (int v = 0; v < kWidth; ++v) out.value[v] = p.value[v] * (gradient.value[v] - product);
      store_tile(dx + c, out);
    });
  }
};

std::size_t bytes_of(std::int64_t elements) { return static_cast<std::size_t>(elements) * sizeof(float); }
float* floats(std::byte* base, std::size_t offset) { return reinterpret_cast<float*>(base + offset); }

}  // namespace

// The products of the heads of a group of records. A matrix of a head is a part of a row-major array of all
// records, and is addressed there.
struct CausalSelfAttention::Scores {
  std::int64_t records, heads, length, width, block;
  MatrixPrecision precision;

  // A head's part of {N, T, stride} that starts at `at`, from row `row` on.
  struct Part {
    const float* at;
    std::int64_t stride, step, outer_step;
  };
  Part part(const float* at, std::int64_t stride, std::int64_t row = 0) const {
    return {at + row * stride, stride, width, length * stride};
  }
  // A head's scores, from row and column on.
  Part square(const float* at, std::int64_t row, std::int64_t column) const {
    return {at + row * length + column, length, length * length, heads * length * length};
  }
  Gemm product(const Part& a, const Part& b, const Part& c) const {
    return {.a = a.at,
            .b = b.at,
            .c = const_cast<float*>(c.at),
            .leading_a = a.stride,
            .leading_b = b.stride,
            .leading_c = c.stride,
            .precision = precision};
  }
  void run(Stream& stream, const Gemm& gemm, const Part& a, const Part& b, const Part& c) const {
    gemm_batched(stream, gemm,
                 {.count = heads,
                  .step_a = a.step,
                  .step_b = b.step,
                  .step_c = c.step,
                  .outer = records,
                  .outer_step_a = a.outer_step,
                  .outer_step_b = b.outer_step,
                  .outer_step_c = c.outer_step});
  }

  // s = scale a b^T, each a block of rows with the columns up to its end.
  void of_rows(Stream& stream, const float* a, std::int64_t stride_a, const float* b, std::int64_t stride_b,
               float* s, float scale) const {
    for (std::int64_t row = 0; row < length; row += block) {
      const Part left = part(a, stride_a, row), right = part(b, stride_b), to = square(s, row, 0);
      Gemm gemm = product(left, right, to);
      gemm.transpose_b = Transpose::kYes;
      gemm.rows = std::min(block, length - row);
      gemm.columns = block_end(row, block, length);
      gemm.inner = width;
      gemm.alpha = scale;
      run(stream, gemm, left, right, to);
    }
  }
  // c = scale s b.
  void times(Stream& stream, const float* s, const float* b, std::int64_t stride_b, float* c,
             std::int64_t stride_c, float scale) const {
    for (std::int64_t row = 0; row < length; row += block) {
      const Part left = square(s, row, 0), right = part(b, stride_b), to = part(c, stride_c, row);
      Gemm gemm = product(left, right, to);
      gemm.rows = std::min(block, length - row);
      gemm.columns = width;
      gemm.inner = block_end(row, block, length);
      gemm.alpha = scale;
      run(stream, gemm, left, right, to);
    }
  }
  // c = scale s^T b: a block of columns of s has values from its first row on.
  void transposed_times(Stream& stream, const float* s, const float* b, std::int64_t stride_b, float* c,
                        std::int64_t stride_c, float scale) const {
    for (std::int64_t row = 0; row < length; row += block) {
      const Part left = square(s, row, row), right = part(b, stride_b, row), to = part(c, stride_c, row);
      Gemm gemm = product(left, right, to);
      gemm.transpose_a = Transpose::kYes;
      gemm.rows = std::min(block, length - row);
      gemm.columns = width;
      gemm.inner = length - row;
      gemm.alpha = scale;
      run(stream, gemm, left, right, to);
    }
  }
};

CausalSelfAttention::CausalSelfAttention(const AttentionOptions& options) : options_(options) {
  if (options.features < 1 || options.heads < 1 || options.features % options.heads != 0) {
    throw std::invalid_argument(describe() + ": the heads must divide the features");
  }
}

std::string CausalSelfAttention::describe() const {
  return "causal self-attention " + std::to_string(options_.features) + ", " +
         std::to_string(options_.heads) + " heads";
}

std::vector<Parameter> CausalSelfAttention::parameters() const {
  const std::int64_t f = options_.features;
  const auto normal = [](float deviation) { return Initializer{Initializer::Kind::kNormal, deviation}; };
  return {{.name = "c_attn.weight", .shape = {3 * f, f}, .initializer = normal(options_.deviation)},
          {.name = "c_attn.bias", .shape = {3 * f}, .initializer = {}, .decay = Decay::kNo},
          {.name = "c_proj.weight", .shape = {f, f}, .initializer = normal(options_.projection_deviation)},
          {.name = "c_proj.bias", .shape = {f}, .initializer = {}, .decay = Decay::kNo}};
}

LayerPlan CausalSelfAttention::plan(Device device, int threads, const Shape& input) {
  const std::int64_t f = options_.features;
  if (input.rank() != 3 || input.last() != f || input.elements() < 1) {
    throw std::invalid_argument(describe() + ": the input must be NxTx" + std::to_string(f) + ", got " +
                                input.to_string());
  }
  records_ = input[0];
  length_ = input[1];
  const bool cuda = device.backend == Backend::kCuda;
  const std::int64_t least = cuda ? kCudaBlock : kHostBlock,
                     quarter = (length_ + kMostBlocks - 1) / kMostBlocks;
  block_ = std::max(least, (quarter + 15) / 16 * 16);
  const std::int64_t squares = options_.heads * length_ * length_;
  group_ = cuda ? kCudaScores / squares : (threads + options_.heads - 1) / options_.heads;
  group_ = std::clamp<std::int64_t>(group_, 1, records_);

  ArenaPlan stash, workspace;
  qkv_ = stash.reserve(bytes_of(rows() * 3 * f));
  normalizers_ = stash.reserve(bytes_of(rows() * options_.heads));
  heads_output_ = stash.reserve(bytes_of(rows() * f));
  qkv_gradient_ = (split_ == BackwardSplit::kSplit ? stash : workspace).reserve(bytes_of(rows() * 3 * f));
  probabilities_ = workspace.reserve(bytes_of(group_ * squares));
  score_gradients_ = workspace.reserve(bytes_of(group_ * squares));
  heads_gradient_ = workspace.reserve(bytes_of(rows() * f));
  sums_ = workspace.reserve(bias_gradient_workspace({rows(), 3 * f}));

  LayerPlan plan;
  plan.output = input;
  plan.stash_bytes = stash.bytes();
  plan.workspace_bytes = workspace.bytes();
  plan.needs = Needs::kInput;
  const auto all_rows = static_cast<double>(rows());
  const double projections = 2.0 * all_rows * static_cast<double>(4 * f * f);
  const double products =
      2.0 * all_rows * static_cast<double>(f * length_) / 2;  // of the scores, half of them hidden
  plan.forward_flops = projections + 2 * products;
  plan.backward_flops = 2 * projections + 5 * products;
  plan.bytes = sizeof(float) * all_rows * static_cast<double>(30 * f) +
               3.0 * sizeof(float) * static_cast<double>(4 * f * f);
  return plan;
}

CausalSelfAttention::Scores CausalSelfAttention::scores(std::int64_t first_record) const {
  return {std::min(group_, records_ - first_record),
          options_.heads,
          length_,
          head_features(),
          block_,
          precision_};
}

void CausalSelfAttention::forward(const ForwardContext& context) const {
  if (length_ == 0) throw std::logic_error(describe() + ": run before plan()");
  const std::int64_t f = options_.features;
  float* const qkv = floats(context.stash, qkv_);
  gemm(context.stream, {.transpose_b = Transpose::kYes,
                        .rows = rows(),
                        .columns = 3 * f,
                        .inner = f,
                        .a = context.input.data,
                        .b = context.weights[0],
                        .c = qkv,
                        .precision = precision_});
  add_bias(context.stream, {rows(), 3 * f}, context.weights[1], qkv);
  for (std::int64_t record = 0; record < records_; record += group_) attend(context, record);
  gemm(context.stream, {.transpose_b = Transpose::kYes,
                        .rows = rows(),
                        .columns = f,
                        .inner = f,
                        .a = floats(context.stash, heads_output_),
                        .b = context.weights[2],
                        .c = context.output.data,
                        .precision = precision_});
  add_bias(context.stream, {rows(), f}, context.weights[3], context.output.data);
}

void CausalSelfAttention::attend(const ForwardContext& context, std::int64_t first_record) const {
  const std::int64_t f = options_.features, row = first_record * length_;
  const Scores all = scores(first_record);
  const float* const q = floats(context.stash, qkv_) + row * 3 * f;
  float* const p = floats(context.workspace, probabilities_);
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_features()));
  all.of_rows(context.stream, q, 3 * f, q + f, 3 * f, p, scale);
  float* const normalizers = floats(context.stash, normalizers_) + row * options_.heads;
  for_each_row(context.stream, all.records * options_.heads * length_, length_,
               Softmax{p, normalizers, length_, block_, allow_tiles(length_, p) && block_ % 4 == 0});
  all.times(context.stream, p, q + 2 * f, 3 * f, floats(context.stash, heads_output_) + row * f, f, 1);
}

float* CausalSelfAttention::qkv_gradient(const BackwardContext& context) const {
  return floats(split_ == BackwardSplit::kSplit ? context.stash : context.workspace, qkv_gradient_);
}

void CausalSelfAttention::run_input(const BackwardContext& context) const {
  const std::int64_t f = options_.features;
  gemm(context.stream, {.rows = rows(),
                        .columns = f,
                        .inner = f,
                        .a = context.output_gradient.data,
                        .b = context.weights[2],
                        .c = floats(context.workspace, heads_gradient_),
                        .precision = precision_});
  for (std::int64_t record = 0; record < records_; record += group_) attend_backward(context, record);
  if (!context.input_gradient.data) return;
  gemm(context.stream, {.rows = rows(),
                        .columns = f,
                        .inner = 3 * f,
                        .a = qkv_gradient(context),
                        .b = context.weights[0],
                        .c = context.input_gradient.data,
                        .precision = precision_});
}

void CausalSelfAttention::attend_backward(const BackwardContext& context, std::int64_t first_record) const {
  const std::int64_t f = options_.features, row = first_record * length_;
  const Scores all = scores(first_record);
  const float* const q = floats(context.stash, qkv_) + row * 3 * f;
  const float *const k = q + f, *const v = q + 2 * f;
  const float* const gradient = floats(context.workspace, heads_gradient_) + row * f;
  float* const dq = qkv_gradient(context) + row * 3 * f;
  float* const p = floats(context.workspace, probabilities_);
  float* const ds = floats(context.workspace, score_gradients_);
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_features()));
  all.of_rows(context.stream, q, 3 * f, k, 3 * f, p, scale);
  all.of_rows(context.stream, gradient, f, v, 3 * f, ds, 1);
  const float* const normalizers = floats(context.stash, normalizers_) + row * options_.heads;
  for_each_row(
      context.stream, all.records * options_.heads * length_, length_,
      SoftmaxGradient{p, ds, normalizers, length_, block_, allow_tiles(length_, p, ds) && block_ % 4 == 0});
  all.transposed_times(context.stream, p, gradient, f, dq + 2 * f, 3 * f, 1);
  all.times(context.stream, ds, k, 3 * f, dq, 3 * f, scale);
  all.transposed_times(context.stream, ds, q, 3 * f, dq + f, 3 * f, scale);
}

void CausalSelfAttention::run_weights(const BackwardContext& context) const {
  const std::int64_t f = options_.features;
  const GradientMode mode = context.gradients.mode;
  const float* const gradient = qkv_gradient(context);
  Gemm product{.transpose_a = Transpose::kYes,
               .rows = 3 * f,
               .columns = f,
               .inner = rows(),
               .a = gradient,
               .b = context.input.data,
               .c = context.gradients[0],
               .beta = mode == GradientMode::kAdd ? 1.0F : 0.0F,
               .precision = precision_};
  gemm(context.stream, product);
  sum_bias_gradient(context.stream, {rows(), 3 * f}, gradient, context.gradients[1], mode,
                    context.workspace + sums_);
  product.rows = f;
  product.a = context.output_gradient.data;
  product.b = floats(context.stash, heads_output_);
  product.c = context.gradients[2];
  gemm(context.stream, product);
  sum_bias_gradient(context.stream, {rows(), f}, context.output_gradient.data, context.gradients[3], mode,
                    context.workspace + sums_);
}

void CausalSelfAttention::backward(const BackwardContext& context) const {
  run_input(context);
  run_weights(context);
}
void CausalSelfAttention::backward_input(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) throw std::logic_error(describe() + ": joined, call backward()");
  run_input(context);
}
void CausalSelfAttention::backward_weights(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) throw std::logic_error(describe() + ": joined, call backward()");
  run_weights(context);
}

}  // namespace pipeoptim
