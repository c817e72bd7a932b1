// Attention's matrices of scores, on CUDA and on hosts that host::AttentionHeads is not for: their softmax,
// and the products with them, by blocks of rows.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include attention_scores.h only from .cu files"
#endif

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/runtime/launch.h"
#include "layers/functions.h"
#include "layers/lanes.h"
#include "layers/provider.h"
#include "layers/tiles.h"

namespace pipeoptim::attention {

using Totals = Lanes<float>;

enum class Direction { kForward, kBackward };

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
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto score = load_tile<kWidth>(x + c);
      const auto shown =
          static_cast<std::int32_t>(t - c);  // the last one of the tile; 32 bits, as the values
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float value = v <= shown ? score.value[v] : first;
        highest.value[v] = value > highest.value[v] ? value : highest.value[v];
      }
    });
    const float largest = highest.reduce(team, LargerOf{});
    Totals sums(0);
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto score = load_tile<kWidth>(x + c);
      const auto shown = static_cast<std::int32_t>(t - c);
      Pack<kWidth> out;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float value = exp_of(score.value[v] - largest);
        out.value[v] = v <= shown ? value : 0.0F;
        sums.value[v] += out.value[v];
      }
      store_tile(x + c, out);
    });
    const float sum = sums.reduce(team, SumOf{});
    const float inverse = 1.0F / sum;
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(x + c);
      Pack<kWidth> out;
      PO_SIMD
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
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto score = load_tile<kWidth>(x + c), gradient = load_tile<kWidth>(dx + c);
      const auto shown = static_cast<std::int32_t>(t - c);
      Pack<kWidth> out;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float exponent = score.value[v] - normalizer;
        const float p = exp_of(exponent > 0 ? 0.0F : exponent);  // above 0 by rounding, or hidden
        out.value[v] = v <= shown ? p : 0.0F;
        products.value[v] += out.value[v] * gradient.value[v];
      }
      store_tile(x + c, out);
    });
    const float product = products.reduce(team, SumOf{});
    for_each_tile(team, end, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto p = load_tile<kWidth>(x + c), gradient = load_tile<kWidth>(dx + c);
      Pack<kWidth> out;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) out.value[v] = p.value[v] * (gradient.value[v] - product);
      store_tile(dx + c, out);
    });
  }
};

// A matrix of a head is a part of a row-major array, and is addressed there: rows `stride` apart, heads
// `step`, records `outer_step`.
struct Part {
  const float* at;
  std::int64_t stride, step, outer_step;
};

// All heads of some records at once, in the order of a stream.
struct OnStream {
  Stream& stream;
  std::int64_t records, heads;
  const float** addresses;  // for a call's products

  void multiply(const Gemm& product, const Part& a, const Part& b, const Part& c) const {
    gemm_batched(stream, product,
                 {.count = heads,
                  .step_a = a.step,
                  .step_b = b.step,
                  .step_c = c.step,
                  .outer = records,
                  .outer_step_a = a.outer_step,
                  .outer_step_b = b.outer_step,
                  .outer_step_c = c.outer_step,
                  .addresses = addresses});
  }
  template <typename Body>
  void rows(std::int64_t length, const Body& body) const {
    for_each_row(stream, records * heads * length, length, body);
  }
};

// One head of one record, in the calling thread.
struct InThread {
  static constexpr std::int64_t heads = 1;

  void multiply(const Gemm& product, const Part&, const Part&, const Part&) const { gemm_here(product); }
  template <typename Body>
  void rows(std::int64_t length, const Body& body) const {
    for (std::int64_t row = 0; row < length; ++row) body(row, HostTeam{});
  }
};

// Products with matrices of scores, by blocks of rows.
template <typename Runner>
struct Scores {
  const Runner& runner;
  std::int64_t length, width, block;
  MatrixPrecision precision;

  // A head's part of {N, T, stride}, from a row on.
  Part part(const float* at, std::int64_t stride, std::int64_t row = 0) const {
    return {at + row * stride, stride, width, length * stride};
  }
  // A head's scores, from a row and a column on.
  Part square(const float* at, std::int64_t row, std::int64_t column) const {
    return {at + row * length + column, length, length * length, runner.heads * length * length};
  }
  void run(Gemm product, const Part& a, const Part& b, const Part& c) const {
    product.a = a.at;
    product.b = b.at;
    product.c = const_cast<float*>(c.at);
    product.leading_a = a.stride;
    product.leading_b = b.stride;
    product.leading_c = c.stride;
    product.precision = precision;
    runner.multiply(product, a, b, c);
  }

  // s = scale a b^T, each a block of rows with the columns up to its end.
  void of_rows(const float* a, std::int64_t stride_a, const float* b, std::int64_t stride_b, float* s,
               float scale) const {
    for (std::int64_t row = 0; row < length; row += block) {
      run({.transpose_b = Transpose::kYes,
           .rows = std::min(block, length - row),
           .columns = block_end(row, block, length),
           .inner = width,
           .alpha = scale},
          part(a, stride_a, row), part(b, stride_b), square(s, row, 0));
    }
  }
  // c = scale s b.
  void times(const float* s, const float* b, std::int64_t stride_b, float* c, std::int64_t stride_c,
             float scale) const {
    for (std::int64_t row = 0; row < length; row += block) {
      run({.rows = std::min(block, length - row),
           .columns = width,
           .inner = block_end(row, block, length),
           .alpha = scale},
          square(s, row, 0), part(b, stride_b), part(c, stride_c, row));
    }
  }
  // c = scale s^T b: a block of columns of s has values from its first row on.
  void transposed_times(const float* s, const float* b, std::int64_t stride_b, float* c,
                        std::int64_t stride_c, float scale) const {
    for (std::int64_t row = 0; row < length; row += block) {
      run({.transpose_a = Transpose::kYes,
           .rows = std::min(block, length - row),
           .columns = width,
           .inner = length - row,
           .alpha = scale},
          square(s, row, row), part(b, stride_b, row), part(c, stride_c, row));
    }
  }
};

// Arrays at the first record and head that they are for.
struct Heads {
  std::int64_t features, length, width, block;
  MatrixPrecision precision;
  const float* qkv;                 // {N, T, 3 features}
  float* normalizers;               // {N, heads, T}
  float* mixed;                     // {N, T, features}: the heads' outputs
  const float* mixed_gradient;      // likewise
  float* qkv_gradient;              // as qkv
  float *scores, *score_gradients;  // {N, heads, T, T}

  float scale() const { return 1.0F / std::sqrt(static_cast<float>(width)); }
  bool packs() const { return allow_tiles(length, scores, score_gradients) && block % 4 == 0; }

  template <typename Runner>
  void forward(const Runner& runner) const {
    const Scores<Runner> all{runner, length, width, block, precision};
    const std::int64_t stride = 3 * features;
    all.of_rows(qkv, stride, qkv + features, stride, scores, scale());
    runner.rows(length, Softmax{scores, normalizers, length, block, packs()});
    all.times(scores, qkv + 2 * features, stride, mixed, features, 1);
  }
  template <typename Runner>
  void backward(const Runner& runner) const {
    const Scores<Runner> all{runner, length, width, block, precision};
    const std::int64_t stride = 3 * features;
    const float *const k = qkv + features, *const v = qkv + 2 * features;
    all.of_rows(qkv, stride, k, stride, scores, scale());
    all.of_rows(mixed_gradient, features, v, stride, score_gradients, 1);
    runner.rows(length, SoftmaxGradient{scores, score_gradients, normalizers, length, block, packs()});
    all.transposed_times(scores, mixed_gradient, features, qkv_gradient + 2 * features, stride, 1);
    all.times(score_gradients, k, stride, qkv_gradient, stride, scale());
    all.transposed_times(score_gradients, qkv, stride, qkv_gradient + features, stride, scale());
  }
  template <typename Runner>
  void run(const Runner& runner, Direction direction) const {
    direction == Direction::kForward ? forward(runner) : backward(runner);
  }

  // From `head` of `record` on, with its own scores.
  Heads at(std::int64_t record, std::int64_t head, std::int64_t heads) const {
    Heads moved = *this;
    const std::int64_t row = record * length, first = head * width;
    moved.qkv += row * 3 * features + first;
    moved.qkv_gradient += row * 3 * features + first;
    moved.mixed += row * features + first;
    moved.mixed_gradient += row * features + first;
    moved.normalizers += (record * heads + head) * length;
    return moved;
  }
};

// A host task for each head: its scores stay in the thread's cache, and threads meet once.
struct HeadInThread {
  Heads all;
  std::int64_t heads;
  Direction direction;

  void operator()(std::int64_t index, const HostTeam&) const {
    Heads own = all.at(index / heads, index % heads, heads);
    const std::int64_t scratch = omp_get_thread_num() * own.length * own.length;
    own.scores += scratch;
    own.score_gradients += scratch;
    own.run(InThread{}, direction);
  }
};

// All heads of `records`: on CUDA in groups whose scores are in the workspace together.
inline void run_heads(Stream& stream, const Heads& all, std::int64_t records, std::int64_t heads,
                      std::int64_t group, const float** addresses, Direction direction) {
  if (stream.device().backend == Backend::kHost) {
    return host::for_each_row(stream, records * heads, HeadInThread{all, heads, direction});
  }
  for (std::int64_t record = 0; record < records; record += group) {
    all.at(record, 0, heads)
        .run(OnStream{stream, std::min(group, records - record), heads, addresses}, direction);
  }
}

}  // namespace pipeoptim::attention
