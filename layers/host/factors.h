// Products of matrices in registers, and the packing of their factors, for processors with AVX-512. Factors
// lie in dwords: one fp32 value each, or two bf16 values that follow each other along the reduction.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/runtime/macros.h"
#include "layers/host/bf16_instructions.h"

namespace pipeoptim::host {
namespace {

constexpr std::int64_t kLanes = 16;  // dwords of a vector
constexpr std::int64_t kRows = 8;    // of a tile

// The two kinds: what is stored, and sums + a b with a dword a lane. All below is compiled for the
// instructions of bf16, which only Bf16Factors' functions name.
struct Fp32Factors {
  using Value = float;
  static constexpr std::int64_t kValues = 1;  // of a dword

  PO_BF16_PAIRS static __m512 add_product(__m512 sums, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sums);
  }
  PO_BF16_PAIRS static void store(float* to, __m512 values) { _mm512_storeu_ps(to, values); }
  PO_BF16_PAIRS static void store(float* to, const __m512 (&values)[2]) {
    _mm512_store_ps(to, values[0]);
    _mm512_store_ps(to + kLanes, values[1]);
  }
};
struct Bf16Factors {
  using Value = Bf16;
  static constexpr std::int64_t kValues = 2;

  PO_BF16_PAIRS static __m512 add_product(__m512 sums, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
  }
  PO_BF16_PAIRS static void store(Bf16* to, __m512 values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(values));
  }
  PO_BF16_PAIRS static void store(Bf16* to, const __m512 (&values)[2]) {
    _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]));
  }
};

// Rows of values in memory, of the factors' type or to be rounded to it.
template <typename Factors, typename Value = typename Factors::Value>
struct Rows {
  const Value* from;
  std::int64_t stride;
  std::int64_t count;  // those behind are zeros
  std::int64_t width;  // a multiple of 16

  std::int64_t dwords() const { return width / Factors::kValues; }
  const auto* row(std::int64_t index) const { return index < count ? from + index * stride : nullptr; }
};

// Asks for a row before it is read or written. Inlined for sure: GCC leaves out calls of functions that do
// nothing else.
template <typename Value>
PO_INLINED inline void prefetch_row(const Value* row, std::int64_t columns) {
  constexpr std::int64_t kLine = 64 / sizeof(Value);
  for (std::int64_t c = 0; c < columns; c += kLine) __builtin_prefetch(row + c);
}

PO_BF16_PAIRS inline __mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>((1U << count) - 1);
}

// The first `count` dwords of values, at most 16, and zeros.
template <typename Factors>
PO_BF16_PAIRS inline __m512i load_dwords(const typename Factors::Value* values, std::int64_t count) {
  return _mm512_maskz_loadu_epi32(first_lanes(count), values);
}
// The same of values in fp32, rounded: 16 or 8 dwords.
template <typename Factors>
requires(Factors::kValues == 2) PO_BF16_PAIRS inline __m512i
    load_dwords(const float* values, std::int64_t count) {
  const __m512 second = _mm512_maskz_loadu_ps(first_lanes(2 * count - kLanes), values + kLanes);
  return (__m512i)_mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(values));
}

// [row][dword of columns]: the rows side by side.
template <typename Factors>
PO_BF16_PAIRS inline void pack_rows(const Rows<Factors>& rows, std::int64_t padded, std::uint32_t* to) {
  const std::int64_t dwords = rows.dwords();
  for (std::int64_t r = 0; r < rows.count; ++r) {
    for (std::int64_t d = 0; d < dwords; d += kLanes) {
      const std::int64_t count = std::min(kLanes, dwords - d);
      const __m512i values = load_dwords<Factors>(rows.row(r) + Factors::kValues * d, count);
      _mm512_mask_storeu_epi32(to + r * dwords + d, first_lanes(count), values);
    }
  }
  std::fill(to + rows.count * dwords, to + padded * dwords, 0U);
}

// [dword of rows][column].
PO_BF16_PAIRS inline void pack_columns(const Rows<Bf16Factors>& rows, std::int64_t padded,
                                       std::uint32_t* to) {
  for (std::int64_t r = 0; r < padded; r += 2) {
    const Bf16 *const first = rows.row(r), *const second = rows.row(r + 1);
    for (std::int64_t c = 0; c < rows.width; c += kLanes, to += kLanes) {
      _mm512_store_si512(to, paired(first, second, c));
    }
  }
}
PO_BF16_PAIRS inline void pack_columns(const Rows<Fp32Factors>& rows, std::int64_t padded,
                                       std::uint32_t* to) {
  pack_rows(rows, padded, to);
}

// Moves the dword at place i of x to 2 i, those behind the half in between: each time rotates the 8 bits of a
// place by one, after four its row is its column.
PO_BF16_PAIRS inline void transpose(__m512i (&x)[kLanes]) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    __m512i next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm512_permutex2var_epi32(x[i], low, x[i + 8]);
      next[2 * i + 1] = _mm512_permutex2var_epi32(x[i], high, x[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = next[i];
  }
}

// [dword of columns][row].
template <typename Factors, typename Value>
PO_BF16_PAIRS inline void pack_transposed(const Rows<Factors, Value>& rows, std::int64_t padded,
                                          std::uint32_t* to) {
  const std::int64_t dwords = rows.dwords();
  for (std::int64_t r = 0; r < padded; r += kLanes) {
    for (std::int64_t d = 0; d < dwords; d += kLanes) {
      const std::int64_t count = std::min(kLanes, dwords - d);
      __m512i x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const Value* const row = rows.row(r + i);
        x[i] =
            row == nullptr ? _mm512_setzero_si512() : load_dwords<Factors>(row + Factors::kValues * d, count);
      }
      transpose(x);
      for (std::int64_t i = 0; i < count; ++i) _mm512_store_si512(to + (d + i) * padded + r, x[i]);
    }
  }
}

// Where a product's tiles go.
struct Sums {
  float* to;
  std::int64_t stride;

  PO_BF16_PAIRS void store(std::int64_t row, std::int64_t column, __m512 sums) const {
    _mm512_store_ps(to + row * stride + column, sums);
  }
};
template <typename Factors>
struct Scaled {
  typename Factors::Value* to;
  std::int64_t stride;
  std::int64_t rows;     // those behind are left out
  const float* factors;  // of the rows
  std::int64_t step;     // from one to the next; 0 for the same

  PO_BF16_PAIRS void store(std::int64_t row, std::int64_t column, __m512 sums) const {
    if (row >= rows) return;
    Factors::store(to + row * stride + column, _mm512_mul_ps(sums, _mm512_set1_ps(factors[row * step])));
  }
};

// c[m][n] = sum over d of a[m a_row + d a_step] . b[d b_step + n], a dot standing for the products of a
// dword.
template <typename Factors>
struct Product {
  const std::uint32_t* a;
  std::int64_t a_row, a_step;
  const std::uint32_t* b;
  std::int64_t b_step;
  std::int64_t dwords;
};

// Two values of bf16 may lie there.
PO_INLINED inline int dword_at(const std::uint32_t* place) {
  int dword = 0;
  std::memcpy(&dword, place, sizeof dword);
  return dword;
}

// kRows rows from `row` on and kVectors vectors from `column` on. The sums stay in registers.
template <int kVectors, typename Factors, typename Output>
PO_BF16_PAIRS inline void multiply_tile(const Product<Factors>& p, std::int64_t row, std::int64_t column,
                                        const Output& output) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) sums[m][n] = _mm512_setzero_ps();
  }
  const std::uint32_t *a = p.a + row * p.a_row, *b = p.b + column;
  for (std::int64_t d = 0; d < p.dwords; ++d, a += p.a_step, b += p.b_step) {
    __m512i met[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) met[n] = _mm512_load_si512(b + n * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512i factor = _mm512_set1_epi32(dword_at(a + m * p.a_row));
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) sums[m][n] = Factors::add_product(sums[m][n], met[n], factor);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) output.store(row + m, column + n * kLanes, sums[m][n]);
  }
}

// kRows rows and all columns before `columns`.
template <typename Factors, typename Output>
PO_BF16_PAIRS inline void multiply_rows(const Product<Factors>& p, std::int64_t row, std::int64_t columns,
                                        const Output& output) {
  for (std::int64_t c = 0; c < columns;) {
    const std::int64_t left = (columns - c) / kLanes;
    if (left == 1) {
      multiply_tile<1>(p, row, c, output);
      c += kLanes;
    } else if (left == 3) {
      multiply_tile<3>(p, row, c, output);
      c += 3 * kLanes;
    } else {
      multiply_tile<2>(p, row, c, output);
      c += 2 * kLanes;
    }
  }
}

}  // namespace
}  // namespace pipeoptim::host

#endif
