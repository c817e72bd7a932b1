// Products of matrices of bf16 pairs in registers, and their packing, for processors with AVX-512 BF16. A
// dword holds two values that follow each other along the reduction.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "layers/host/bf16_instructions.h"

namespace pipeoptim::host {
namespace {

constexpr std::int64_t kLanes = 16;  // dwords of a vector
constexpr std::int64_t kRows = 8;    // of a tile

// Rows of bf16 values in memory.
struct Rows {
  const Bf16* from;
  std::int64_t stride;
  std::int64_t count;  // those behind are zeros
  std::int64_t width;  // a multiple of 16

  const Bf16* row(std::int64_t index) const { return index < count ? from + index * stride : nullptr; }
};

// [row][pair of columns]: the rows side by side.
inline void pack_rows(const Rows& rows, std::int64_t padded, std::uint32_t* to) {
  const std::int64_t dwords = rows.width / 2;
  for (std::int64_t r = 0; r < rows.count; ++r) {
    std::memcpy(to + r * dwords, rows.from + r * rows.stride, static_cast<std::size_t>(rows.width) * 2);
  }
  std::fill(to + rows.count * dwords, to + padded * dwords, 0U);
}

// [pair of rows][column].
PO_BF16_PAIRS inline void pack_row_pairs(const Rows& rows, std::int64_t padded, std::uint32_t* to) {
  for (std::int64_t r = 0; r < padded; r += 2) {
    const Bf16 *const first = rows.row(r), *const second = rows.row(r + 1);
    for (std::int64_t c = 0; c < rows.width; c += kLanes, to += kLanes) {
      const __m512i upper = _mm512_slli_epi32(widened(second, c), 16);
      _mm512_store_si512(to, _mm512_or_si512(widened(first, c), upper));
    }
  }
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

// [pair of columns][row].
PO_BF16_PAIRS inline void pack_transposed(const Rows& rows, std::int64_t padded, std::uint32_t* to) {
  const std::int64_t pairs = rows.width / 2;
  for (std::int64_t r = 0; r < padded; r += kLanes) {
    for (std::int64_t p = 0; p < pairs; p += kLanes) {
      const std::int64_t count = std::min(kLanes, pairs - p);
      const auto there = static_cast<__mmask16>((1U << count) - 1);
      __m512i x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const Bf16* const row = rows.row(r + i);
        x[i] = row == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi32(there, row + 2 * p);
      }
      transpose(x);
      for (std::int64_t i = 0; i < count; ++i) _mm512_store_si512(to + (p + i) * padded + r, x[i]);
    }
  }
}

// Where a product's tiles go.
struct Floats {
  float* to;
  std::int64_t stride;

  PO_BF16_PAIRS void store(std::int64_t row, std::int64_t column, __m512 sums) const {
    _mm512_store_ps(to + row * stride + column, sums);
  }
};
struct Rounded {
  Bf16* to;
  std::int64_t stride;
  std::int64_t rows;     // those behind are left out
  const float* factors;  // of the rows
  std::int64_t step;     // from one to the next; 0 for the same

  PO_BF16_PAIRS void store(std::int64_t row, std::int64_t column, __m512 sums) const {
    if (row >= rows) return;
    const __m512 scaled = _mm512_mul_ps(sums, _mm512_set1_ps(factors[row * step]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + row * stride + column),
                        (__m256i)_mm512_cvtneps_pbh(scaled));
  }
};

// c[m][n] = sum over p of a[m row + p pair] . b[p pair + n], a dot standing for the two products of a pair.
struct PairProduct {
  const std::uint32_t* a;
  std::int64_t a_row, a_pair;
  const std::uint32_t* b;
  std::int64_t b_pair;
  std::int64_t pairs;
};

// kRows rows from `row` on and kVectors vectors from `column` on. The sums stay in registers.
template <int kVectors, typename Output>
PO_BF16_PAIRS inline void multiply_tile(const PairProduct& p, std::int64_t row, std::int64_t column,
                                        const Output& output) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) sums[m][n] = _mm512_setzero_ps();
  }
  const std::uint32_t *a = p.a + row * p.a_row, *b = p.b + column;
  for (std::int64_t pair = 0; pair < p.pairs; ++pair, a += p.a_pair, b += p.b_pair) {
    __m512bh met[kVectors];
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) met[n] = (__m512bh)_mm512_load_si512(b + n * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512bh factor = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[m * p.a_row]));
#pragma GCC unroll 3
      for (int n = 0; n < kVectors; ++n) sums[m][n] = _mm512_dpbf16_ps(sums[m][n], met[n], factor);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < kVectors; ++n) output.store(row + m, column + n * kLanes, sums[m][n]);
  }
}

// kRows rows and all columns before `columns`.
template <typename Output>
PO_BF16_PAIRS inline void multiply_rows(const PairProduct& p, std::int64_t row, std::int64_t columns,
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
