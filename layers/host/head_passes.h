// One head of causal self-attention in one thread, by the tiles of factors.h.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/runtime/macros.h"
#include "layers/host/factors.h"
#include "layers/host/head_memory.h"

namespace pipeoptim::host {
namespace {

// 2^x by the Taylor series of x less its nearest integer: up to x^5 within 3e-6, up to x^7, for factors in
// fp32, within 1e-7. NaN for NaN, 2^-126 for all that is smaller.
template <typename Factors>
PO_BF16_PAIRS inline __m512 power_of_two(__m512 x) {
  const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-126.0F), x);  // the second one where one is NaN
  const __m512 whole = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(bounded, whole);
  __m512 power = _mm512_set1_ps(1.33335581e-3F);
  if constexpr (Factors::kValues == 1) {
    const __m512 tail = _mm512_fmadd_ps(_mm512_set1_ps(1.52527338e-5F), r, _mm512_set1_ps(1.54035304e-4F));
    power = _mm512_fmadd_ps(tail, r, power);
  }
  power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(9.61812911e-3F));
  power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(5.55041087e-2F));
  power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(2.40226507e-1F));
  power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(6.93147181e-1F));
  power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(power, whole);
}

// The lanes of the queries from `first` on that see the key.
PO_BF16_PAIRS inline __mmask16 seeing(std::int64_t key, std::int64_t first) {
  return static_cast<__mmask16>(0xFFFFU << std::clamp<std::int64_t>(key - first, 0, kLanes));
}

// Stores a vector of each of two keys from `key` on, an even one, to the block's factors.
PO_BF16_PAIRS inline void store_keys(const Head<Fp32Factors>& head, std::int64_t key, std::int64_t query,
                                     __m512 first, __m512 second) {
  std::uint32_t* const to = head.block_keys + key * kBlock + query;
  _mm512_store_ps(to, first);
  _mm512_store_ps(to + kBlock, second);
}
PO_BF16_PAIRS inline void store_keys(const Head<Bf16Factors>& head, std::int64_t key, std::int64_t query,
                                     __m512 first, __m512 second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i apart = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  _mm512_store_si512(head.block_keys + key / 2 * kBlock + query, _mm512_permutexvar_epi16(order, apart));
}

// [key][query] = a b^T for the queries from `first` on and the keys that any of them sees.
template <typename Factors>
PO_BF16_PAIRS inline void make_scores(const Head<Factors>& head, const std::uint32_t* keys,
                                      const std::uint32_t* queries, std::int64_t first, float* scores) {
  const std::int64_t dwords = head.width / Factors::kValues;
  const Product<Factors> product{
      .a = keys, .a_row = dwords, .a_step = 1, .b = queries + first, .b_step = head.padded, .dwords = dwords};
  const Sums output{scores, kBlock};
  std::int64_t key = 0;
  for (; key < first + kLanes; key += kRows) multiply_tile<2>(product, key, 0, output);
  for (; key < first + kBlock; key += kRows) multiply_tile<1>(product, key, kLanes, output);
}

// Of the queries from `first` on: factors in dwords of keys by rows of the keys.
template <typename Factors>
PO_BF16_PAIRS inline void multiply_keys(const Head<Factors>& head, const std::uint32_t* keys,
                                        std::int64_t first, const Scaled<Factors>& output) {
  for (std::int64_t row = 0; row < kBlock && row < output.rows; row += kRows) {
    const Product<Factors> product{.a = head.block_keys,
                                   .a_row = 1,
                                   .a_step = kBlock,
                                   .b = keys,
                                   .b_step = head.width,
                                   .dwords = (first + row + kRows) / Factors::kValues};
    multiply_rows(product, row, head.width, output);
  }
}

// Of all keys: factors in dwords of queries by rows of the queries, from the first one that sees a key on.
template <typename Factors>
PO_BF16_PAIRS void multiply_queries(const Head<Factors>& head, const typename Factors::Value* factors,
                                    const std::uint32_t* queries, const Scaled<Factors>& output) {
  const std::int64_t dwords = head.padded / Factors::kValues;
  for (std::int64_t key = 0; key < head.length; key += kRows) {
    const std::int64_t hidden = key / Factors::kValues;
    const Product<Factors> product{.a = reinterpret_cast<const std::uint32_t*>(factors) + hidden,
                                   .a_row = dwords,
                                   .a_step = 1,
                                   .b = queries + hidden * head.width,
                                   .b_step = head.width,
                                   .dwords = dwords - hidden};
    multiply_rows(product, key, head.width, output);
  }
}

// Scores of a block to the numerators of their probabilities, in dwords of keys.
template <typename Factors>
PO_BF16_PAIRS inline void make_numerators(const Head<Factors>& head, std::int64_t first, float* inverses) {
  const __m512 scale = _mm512_set1_ps(head.exponent_scale());
  for (std::int64_t v = 0; v < kBlock; v += kLanes) {
    const float* const scores = head.scores + v;
    const std::int64_t query = first + v, keys = query + kLanes;
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (std::int64_t key = 0; key < keys; ++key) {
      largest =
          _mm512_mask_max_ps(largest, seeing(key, query), largest, _mm512_load_ps(scores + key * kBlock));
    }
    largest = _mm512_mul_ps(largest, scale);
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::int64_t key = 0; key < first + kBlock; key += 2) {
      __m512 numerators[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512 score = _mm512_load_ps(scores + (key + i) * kBlock);
        const __m512 power = power_of_two<Factors>(_mm512_fmsub_ps(score, scale, largest));
        numerators[i] = _mm512_maskz_mov_ps(seeing(key + i, query), power);
        sums[i] = _mm512_add_ps(sums[i], numerators[i]);
      }
      store_keys(head, key, v, numerators[0], numerators[1]);
    }
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0F), _mm512_add_ps(sums[0], sums[1]));
    _mm512_store_ps(inverses + v, inverse);
    const std::int64_t there = std::clamp<std::int64_t>(head.length - query, 0, kLanes);
    const __mmask16 lanes = first_lanes(there);
    if (there == 0) continue;
    _mm512_mask_storeu_ps(head.exponents + query, lanes, largest);
    _mm512_mask_storeu_ps(head.inverses + query, lanes, inverse);
  }
}

// Asks for a block's rows from `first` on before they are read or written: no processor foresees short pieces
// of memory so far apart.
template <typename Factors>
PO_INLINED inline void prefetch_block(const Head<Factors>& head, const typename Factors::Value* rows,
                                      std::int64_t stride, std::int64_t first) {
  const std::int64_t end = std::min(first + kBlock, head.length);
  for (std::int64_t row = first; row < end; ++row) prefetch_row(rows + row * stride, head.width);
}
// Of those that the next head has beside this one's.
template <typename Factors>
PO_INLINED inline void prefetch_next(const Head<Factors>& head, const Rows<Factors>& rows,
                                     std::int64_t first) {
  if (head.has_next) prefetch_block(head, rows.from + head.width, rows.stride, first);
}

template <typename Factors>
PO_BF16_PAIRS void run_forward(const Head<Factors>& head) {
  pack_transposed(head.q, head.padded, head.q_transposed);
  pack_rows(head.k, head.padded, head.k_rows);
  pack_columns(head.v, head.padded, head.v_columns);
  alignas(64) float inverses[kBlock];
  for (std::int64_t first = 0; first < head.length; first += kBlock) {
    for (const auto& next : {head.q, head.k, head.v}) prefetch_next(head, next, first);
    prefetch_block(head, head.output, head.stride, first);
    make_scores(head, head.k_rows, head.q_transposed, first, head.scores);
    make_numerators(head, first, inverses);
    multiply_keys(head, head.v_columns, first,
                  {.to = head.output + first * head.stride,
                   .stride = head.stride,
                   .rows = head.length - first,
                   .factors = inverses,
                   .step = 1});
  }
}

// Scores of a block to probabilities p, and the gradients of probabilities to those of scores,
// p (dp - sum p dp), both as factors.
template <typename Factors>
PO_BF16_PAIRS inline void make_score_gradients(const Head<Factors>& head, std::int64_t first) {
  const __m512 scale = _mm512_set1_ps(head.exponent_scale());
  const std::int64_t keys = first + kBlock;
  __m512 largest[kVectors], inverse[kVectors], products[kVectors];
  for (std::int64_t v = 0; v < kVectors; ++v) {
    const std::int64_t query = first + v * kLanes;
    const std::int64_t there = std::clamp<std::int64_t>(head.length - query, 0, kLanes);
    const __mmask16 lanes = first_lanes(there);
    const std::int64_t from = std::min(query, head.length);  // nothing is read behind the end
    largest[v] = _mm512_maskz_loadu_ps(lanes, head.exponents + from);
    inverse[v] = _mm512_maskz_loadu_ps(lanes, head.inverses + from);
    products[v] = _mm512_setzero_ps();
  }
  for (std::int64_t key = 0; key < keys; ++key) {
    __m512 p[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = key * kBlock + v * kLanes;
      const __mmask16 seen = seeing(key, first + v * kLanes);
      const __m512 exponent = _mm512_fmsub_ps(_mm512_load_ps(head.scores + at), scale, largest[v]);
      p[v] = _mm512_maskz_mul_ps(seen, power_of_two<Factors>(exponent), inverse[v]);
      const __m512 gradient = _mm512_load_ps(head.score_gradients + at);
      products[v] = _mm512_mask3_fmadd_ps(p[v], gradient, products[v], seen);
      _mm512_store_ps(head.scores + at, p[v]);
    }
    Factors::store(head.probabilities + key * head.padded + first, p);
  }
  for (std::int64_t key = 0; key < keys; key += 2) {
    __m512 gradients[2][kVectors];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const std::int64_t at = (key + i) * kBlock + v * kLanes;
        const __m512 apart = _mm512_sub_ps(_mm512_load_ps(head.score_gradients + at), products[v]);
        gradients[i][v] =
            _mm512_maskz_mul_ps(seeing(key + i, first + v * kLanes), _mm512_load_ps(head.scores + at), apart);
      }
      Factors::store(head.factor_gradients + (key + i) * head.padded + first, gradients[i]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store_keys(head, key, v * kLanes, gradients[0][v], gradients[1][v]);
  }
}

template <typename Factors>
PO_BF16_PAIRS void run_backward(const Head<Factors>& head) {
  pack_transposed(head.q, head.padded, head.q_transposed);
  pack_transposed(head.output_gradient, head.padded, head.output_gradient_transposed);
  pack_rows(head.k, head.padded, head.k_rows);
  pack_rows(head.v, head.padded, head.v_rows);
  pack_columns(head.q, head.padded, head.q_columns);
  if constexpr (Factors::kValues > 1) pack_columns(head.k, head.padded, head.k_columns);
  pack_columns(head.output_gradient, head.padded, head.output_gradient_columns);
  const float scale = head.scale(), one = 1;
  const std::int64_t stride = head.q.stride;
  for (std::int64_t first = 0; first < head.length; first += kBlock) {
    for (const auto& next : {head.q, head.k, head.v, head.output_gradient}) prefetch_next(head, next, first);
    for (const auto* gradient : {head.q_gradient, head.k_gradient, head.v_gradient}) {
      prefetch_block(head, gradient, stride, first);
    }
    make_scores(head, head.k_rows, head.q_transposed, first, head.scores);
    make_scores(head, head.v_rows, head.output_gradient_transposed, first, head.score_gradients);
    make_score_gradients(head, first);
    multiply_keys(head, head.k_columns, first,
                  {head.q_gradient + first * stride, stride, head.length - first, &scale, 0});
  }
  multiply_queries(head, head.probabilities, head.output_gradient_columns,
                   {head.v_gradient, stride, head.length, &one, 0});
  multiply_queries(head, head.factor_gradients, head.q_columns,
                   {head.k_gradient, stride, head.length, &scale, 0});
}

}  // namespace
}  // namespace pipeoptim::host

#endif
