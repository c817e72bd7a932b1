#include "layers/host/attention_heads.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "layers/host/bf16_pairs.h"

namespace pipeoptim::host {

#if defined(__x86_64__)

bool AttentionHeads::handles(std::int64_t width, MatrixPrecision precision) {
  return precision == MatrixPrecision::kBf16 && width % kLanes == 0 && multiplies_bf16_pairs();
}

namespace {

// Queries whose scores are made together: two vectors. Scores lie transposed, [key][query], so that a
// softmax goes through the keys with a query a lane, and no vector is reduced.
constexpr std::int64_t kVectors = 2, kBlock = kVectors * kLanes;

// One head, in memory and in its thread's part of the workspace. Rows behind the last position are zeros, up
// to `padded`.
struct Head {
  std::int64_t length, width, padded;
  Rows q, k, v, output_gradient;
  float *exponents, *inverses;  // [T]: the softmax's largest exponent of 2, and one over its sum
  Bf16 *output, *q_gradient, *k_gradient, *v_gradient;
  std::int64_t stride;  // of the output; the gradients have that of q

  // Packed: [pair of columns][row], [row][pair of columns], [pair of rows][column].
  std::uint32_t *q_transposed, *output_gradient_transposed, *k_rows, *v_rows;
  std::uint32_t *q_pairs, *k_pairs, *v_pairs, *output_gradient_pairs;
  float *scores, *score_gradients;          // [key][query] of a block
  std::uint32_t* block_pairs;               // [pair of keys][query]: a factor of the queries' products
  Bf16 *probabilities, *rounded_gradients;  // [key][all queries]: factors of the keys' products

  float scale() const { return 1.0F / std::sqrt(static_cast<float>(width)); }
  float exponent_scale() const { return scale() * 1.44269504F; }  // times log2 e
};

// 2^x within 3e-6, by the Taylor series up to x^5 of x less its nearest integer. NaN for NaN, 2^-126 for all
// that is smaller.
PO_BF16_PAIRS inline __m512 power_of_two(__m512 x) {
  const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-126.0F), x);  // the second one where one is NaN
  const __m512 whole = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(bounded, whole);
  __m512 power = _mm512_set1_ps(1.33335581e-3F);
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

// 16 pairs of values of two rows.
PO_BF16_PAIRS inline __m512i pairs_of(__m512 first, __m512 second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// [key][query] = a b^T for the queries from `first` on and the keys that any of them sees.
PO_BF16_PAIRS inline void make_scores(const Head& head, const std::uint32_t* keys,
                                      const std::uint32_t* queries, std::int64_t first, float* scores) {
  const PairProduct product{.a = keys,
                            .a_row = head.width / 2,
                            .a_pair = 1,
                            .b = queries + first,
                            .b_pair = head.padded,
                            .pairs = head.width / 2};
  const Floats output{scores, kBlock};
  std::int64_t key = 0;
  for (; key < first + kLanes; key += kRows) multiply_tile<2>(product, key, 0, output);
  for (; key < first + kBlock; key += kRows) multiply_tile<1>(product, key, kLanes, output);
}

// Of the queries from `first` on: factors in pairs of keys by rows of the keys.
PO_BF16_PAIRS inline void multiply_keys(const Head& head, const std::uint32_t* keys, std::int64_t first,
                                        const Rounded& output) {
  for (std::int64_t row = 0; row < kBlock && row < output.rows; row += kRows) {
    multiply_rows({.a = head.block_pairs,
                   .a_row = 1,
                   .a_pair = kBlock,
                   .b = keys,
                   .b_pair = head.width,
                   .pairs = (first + row + kRows) / 2},
                  row, head.width, output);
  }
}

// Of all keys: factors in pairs of queries by rows of the queries, from the first one that sees a key on.
PO_BF16_PAIRS void multiply_queries(const Head& head, const Bf16* factors, const std::uint32_t* queries,
                                    const Rounded& output) {
  for (std::int64_t key = 0; key < head.length; key += kRows) {
    const std::int64_t hidden = key / 2;
    multiply_rows({.a = reinterpret_cast<const std::uint32_t*>(factors) + hidden,
                   .a_row = head.padded / 2,
                   .a_pair = 1,
                   .b = queries + hidden * head.width,
                   .b_pair = head.width,
                   .pairs = head.padded / 2 - hidden},
                  key, head.width, output);
  }
}

// Scores of a block to the numerators of their probabilities, in pairs of keys.
PO_BF16_PAIRS inline void make_numerators(const Head& head, std::int64_t first, float* inverses) {
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
        const __m512 power = power_of_two(_mm512_fmsub_ps(score, scale, largest));
        numerators[i] = _mm512_maskz_mov_ps(seeing(key + i, query), power);
        sums[i] = _mm512_add_ps(sums[i], numerators[i]);
      }
      _mm512_store_si512(head.block_pairs + key / 2 * kBlock + v, pairs_of(numerators[0], numerators[1]));
    }
    const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0F), _mm512_add_ps(sums[0], sums[1]));
    _mm512_store_ps(inverses + v, inverse);
    const std::int64_t there = std::clamp<std::int64_t>(head.length - query, 0, kLanes);
    const auto lanes = static_cast<__mmask16>((1U << there) - 1);
    if (there == 0) continue;
    _mm512_mask_storeu_ps(head.exponents + query, lanes, largest);
    _mm512_mask_storeu_ps(head.inverses + query, lanes, inverse);
  }
}

PO_BF16_PAIRS void run_forward(const Head& head) {
  pack_transposed(head.q, head.padded, head.q_transposed);
  pack_rows(head.k, head.padded, head.k_rows);
  pack_row_pairs(head.v, head.padded, head.v_pairs);
  alignas(64) float inverses[kBlock];
  for (std::int64_t first = 0; first < head.length; first += kBlock) {
    make_scores(head, head.k_rows, head.q_transposed, first, head.scores);
    make_numerators(head, first, inverses);
    multiply_keys(head, head.v_pairs, first,
                  {.to = head.output + first * head.stride,
                   .stride = head.stride,
                   .rows = head.length - first,
                   .factors = inverses,
                   .step = 1});
  }
}

// Scores of a block to probabilities p, and the gradients of probabilities to those of scores,
// p (dp - sum p dp), both rounded.
PO_BF16_PAIRS inline void make_score_gradients(const Head& head, std::int64_t first) {
  const __m512 scale = _mm512_set1_ps(head.exponent_scale());
  const std::int64_t keys = first + kBlock;
  __m512 largest[kVectors], inverse[kVectors], products[kVectors];
  for (std::int64_t v = 0; v < kVectors; ++v) {
    const std::int64_t query = first + v * kLanes;
    const std::int64_t there = std::clamp<std::int64_t>(head.length - query, 0, kLanes);
    const auto lanes = static_cast<__mmask16>((1U << there) - 1);
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
      p[v] = _mm512_maskz_mul_ps(seen, power_of_two(exponent), inverse[v]);
      const __m512 gradient = _mm512_load_ps(head.score_gradients + at);
      products[v] = _mm512_mask3_fmadd_ps(p[v], gradient, products[v], seen);
      _mm512_store_ps(head.scores + at, p[v]);
    }
    _mm512_store_si512(head.probabilities + key * head.padded + first,
                       (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
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
      _mm512_store_si512(head.rounded_gradients + (key + i) * head.padded + first,
                         (__m512i)_mm512_cvtne2ps_pbh(gradients[i][1], gradients[i][0]));
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      _mm512_store_si512(head.block_pairs + key / 2 * kBlock + v * kLanes,
                         pairs_of(gradients[0][v], gradients[1][v]));
    }
  }
}

PO_BF16_PAIRS void run_backward(const Head& head) {
  pack_transposed(head.q, head.padded, head.q_transposed);
  pack_transposed(head.output_gradient, head.padded, head.output_gradient_transposed);
  pack_rows(head.k, head.padded, head.k_rows);
  pack_rows(head.v, head.padded, head.v_rows);
  pack_row_pairs(head.q, head.padded, head.q_pairs);
  pack_row_pairs(head.k, head.padded, head.k_pairs);
  pack_row_pairs(head.output_gradient, head.padded, head.output_gradient_pairs);
  const float scale = head.scale(), one = 1;
  const std::int64_t stride = head.q.stride;
  for (std::int64_t first = 0; first < head.length; first += kBlock) {
    make_scores(head, head.k_rows, head.q_transposed, first, head.scores);
    make_scores(head, head.v_rows, head.output_gradient_transposed, first, head.score_gradients);
    make_score_gradients(head, first);
    multiply_keys(head, head.k_pairs, first,
                  {head.q_gradient + first * stride, stride, head.length - first, &scale, 0});
  }
  multiply_queries(head, head.probabilities, head.output_gradient_pairs,
                   {head.v_gradient, stride, head.length, &one, 0});
  multiply_queries(head, head.rounded_gradients, head.q_pairs,
                   {head.k_gradient, stride, head.length, &scale, 0});
}

// The arrays of a thread one behind the other; without memory, only their bytes.
struct Layout {
  std::byte* at;
  std::size_t bytes = 0;

  template <typename T>
  void place(T*& array, std::int64_t count) {
    if (at != nullptr) array = reinterpret_cast<T*>(at + bytes);
    bytes += align_up(static_cast<std::size_t>(count) * sizeof(T));
  }
};

std::size_t place_scratch(Head& head, std::byte* memory) {
  Layout layout{memory};
  const std::int64_t dwords = head.padded * head.width / 2;
  for (std::uint32_t** packed :
       {&head.q_transposed, &head.output_gradient_transposed, &head.k_rows, &head.v_rows, &head.q_pairs,
        &head.k_pairs, &head.v_pairs, &head.output_gradient_pairs}) {
    layout.place(*packed, dwords);
  }
  layout.place(head.scores, head.padded * kBlock);
  layout.place(head.score_gradients, head.padded * kBlock);
  layout.place(head.block_pairs, head.padded / 2 * kBlock);
  layout.place(head.probabilities, head.padded * head.padded);
  layout.place(head.rounded_gradients, head.padded * head.padded);
  return layout.bytes;
}

Head make_head(const HeadExtents& e) {
  Head head{};
  head.length = e.length;
  head.width = e.width;
  head.padded = (e.length + kBlock - 1) / kBlock * kBlock;
  return head;
}

// Where a head's features begin in {N, T, stride}.
std::int64_t head_offset(const HeadExtents& e, std::int64_t index, std::int64_t stride) {
  return index / e.heads * e.length * stride + index % e.heads * e.width;
}

// Head `index` of all records, with its thread's scratch.
Head make_head(const HeadExtents& e, const AttentionHeads::Operands& operands, std::int64_t index,
               std::byte* scratch) {
  Head head = make_head(e);
  place_scratch(head, scratch);
  const std::int64_t features = e.heads * e.width, stride = 3 * features;
  const Bf16* const q = operands.qkv + head_offset(e, index, stride);
  head.q = {q, stride, e.length, e.width};
  head.k = {q + features, stride, e.length, e.width};
  head.v = {q + 2 * features, stride, e.length, e.width};
  head.exponents = operands.normalizers + index * 2 * e.length;
  head.inverses = head.exponents + e.length;
  head.stride = features;
  return head;
}

// Calls body(index, the thread's part of the workspace).
template <typename Body>
void for_each_head(const HeadExtents& e, [[maybe_unused]] int threads, std::byte* workspace,
                   std::size_t part_bytes, const Body& body) {
  const std::int64_t heads = e.records * e.heads;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t index = 0; index < heads; ++index) {
    body(index, workspace + part_bytes * static_cast<std::size_t>(omp_get_thread_num()));
  }
}

}  // namespace

AttentionHeads::AttentionHeads(int threads, const HeadExtents& extents)
    : threads_(threads), extents_(extents) {
  if (!handles(extents.width, MatrixPrecision::kBf16)) throw std::logic_error("not for heads of this width");
  Head head = make_head(extents);
  part_bytes_ = place_scratch(head, nullptr);
}

void AttentionHeads::forward(Stream& stream, const Operands& operands, Bf16* output,
                             std::byte* workspace) const {
  stream.submit([this, operands, output, workspace] {
    for_each_head(extents_, threads_, workspace, part_bytes_, [&](std::int64_t index, std::byte* scratch) {
      Head head = make_head(extents_, operands, index, scratch);
      head.output = output + head_offset(extents_, index, head.stride);
      run_forward(head);
    });
  });
}

void AttentionHeads::backward(Stream& stream, const Operands& operands, const Bf16* output_gradient,
                              Bf16* qkv_gradient, std::byte* workspace) const {
  stream.submit([this, operands, output_gradient, qkv_gradient, workspace] {
    for_each_head(extents_, threads_, workspace, part_bytes_, [&](std::int64_t index, std::byte* scratch) {
      Head head = make_head(extents_, operands, index, scratch);
      head.output_gradient = {output_gradient + head_offset(extents_, index, head.stride), head.stride,
                              head.length, head.width};
      head.q_gradient = qkv_gradient + (head.q.from - operands.qkv);
      head.k_gradient = head.q_gradient + head.stride;
      head.v_gradient = head.k_gradient + head.stride;
      run_backward(head);
    });
  });
}

#else

bool AttentionHeads::handles(std::int64_t, MatrixPrecision) { return false; }
AttentionHeads::AttentionHeads(int threads, const HeadExtents& extents)
    : threads_(threads), extents_(extents) {
  throw std::logic_error("no heads in bf16 on this processor");
}
void AttentionHeads::forward(Stream&, const Operands&, Bf16*, std::byte*) const {}
void AttentionHeads::backward(Stream&, const Operands&, const Bf16*, Bf16*, std::byte*) const {}

#endif

}  // namespace pipeoptim::host
