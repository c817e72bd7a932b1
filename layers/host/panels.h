// Products of matrices that are packed in panels of columns, for processors with AVX-512 BF16: tiles of
// factors.h over what fits the caches.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/runtime/buffer.h"
#include "layers/host/factors.h"
#include "layers/tensor.h"

namespace pipeoptim::host {
namespace {

// Columns that are packed together: three vectors, and two where three do not come out even.
constexpr std::int64_t kPanel = 3 * kLanes, kNarrowPanel = 2 * kLanes;

struct Panels {
  std::int64_t columns;  // in sixteens, more than one

  std::int64_t narrow() const { return (3 - columns / kLanes % 3) % 3; }
  std::int64_t wide() const { return (columns - narrow() * kNarrowPanel) / kPanel; }
  std::int64_t count() const { return wide() + narrow(); }
  std::int64_t begin(std::int64_t panel) const {
    const std::int64_t behind = std::max<std::int64_t>(0, panel - wide());
    return (panel - behind) * kPanel + behind * kNarrowPanel;
  }
  std::int64_t width(std::int64_t panel) const { return panel < wide() ? kPanel : kNarrowPanel; }
};

// Dwords of a column of a panel: not a power of two, so that panels do not compete for the same lines of a
// cache.
constexpr std::int64_t stride_of(std::int64_t dwords) { return dwords + 2; }

std::size_t packed_bytes(std::int64_t values, std::int64_t columns) {
  const std::int64_t dwords = stride_of(values / Bf16Factors::kValues) * columns;
  return align_up(static_cast<std::size_t>(dwords) * sizeof(std::uint32_t));
}

// Where tiles go.
struct Result {
  Destination to;  // from the first row and column on
  std::int64_t stride;
  const float* bias = nullptr;
  bool relu = false, adds = false;

  Result at(std::int64_t row, std::int64_t column) const {
    Result moved = *this;
    if (to.rounded != nullptr) moved.to.rounded += row * stride + column;
    if (to.values != nullptr) moved.to.values += row * stride + column;
    if (bias != nullptr) moved.bias += column;
    return moved;
  }
  // Asks for what a tile from here on is added to, which may be in another core's caches.
  PO_INLINED void prefetch(std::int64_t columns) const {
    for (std::int64_t row = 0; adds && row < kRows; ++row) prefetch_row(to.values + row * stride, columns);
  }
  PO_BF16_PAIRS void store(std::int64_t row, std::int64_t column, __m512 sums) const {
    const std::int64_t at = row * stride + column;
    if (bias != nullptr) sums = _mm512_add_ps(sums, _mm512_loadu_ps(bias + column));
    if (relu) sums = _mm512_max_ps(_mm512_setzero_ps(), sums);  // the second one where one is NaN
    if (to.rounded != nullptr) return Bf16Factors::store(to.rounded + at, sums);
    if (adds) sums = _mm512_add_ps(sums, _mm512_loadu_ps(to.values + at));
    _mm512_storeu_ps(to.values + at, sums);
  }
};

// The factor of the rows: that of row m of a tile at dword d lies at m row + d step, and the next tile's
// begin `tile` dwords further.
struct RowFactor {
  const std::uint32_t* from;
  std::int64_t tile, row, step;
};

// All panels of `packed`, each for all rows.
PO_BF16_PAIRS void multiply_panels(const RowFactor& a, std::int64_t rows, const std::uint32_t* packed,
                                   const Panels& panels, std::int64_t dwords, const Result& result) {
  for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
    const std::int64_t column = panels.begin(panel), width = panels.width(panel);
    for (std::int64_t tile = 0; tile < rows / kRows; ++tile) {
      const Product<Bf16Factors> product{.a = a.from + tile * a.tile,
                                         .a_row = a.row,
                                         .a_step = a.step,
                                         .b = packed + column * stride_of(dwords),
                                         .b_step = width,
                                         .dwords = dwords};
      const Result here = result.at(tile * kRows, column);
      here.prefetch(width);
      if (width == kPanel) {
        multiply_tile<3>(product, 0, 0, here);
      } else {
        multiply_tile<2>(product, 0, 0, here);
      }
    }
  }
}

// Rows of a dense matrix.
template <typename Value>
struct Source {
  const Value* from;
  std::int64_t stride;
};

// Asks for two rows before they are packed: they come from memory, or from another core's caches.
template <typename Value>
PO_INLINED inline void prefetch_pair(const Source<Value>& rows, std::int64_t columns, std::int64_t pair) {
  prefetch_row(rows.from + 2 * pair * rows.stride, columns);
  prefetch_row(rows.from + (2 * pair + 1) * rows.stride, columns);
}
constexpr std::int64_t kPairsAhead = 4;

// Panels of columns, in pairs of rows.
template <typename Value>
PO_BF16_PAIRS void pack_panels(const Source<Value>& rows, const Panels& panels, std::int64_t pairs,
                               std::uint32_t* packed) {
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (pair + kPairsAhead < pairs) prefetch_pair(rows, panels.columns, pair + kPairsAhead);
    const Value *const first = rows.from + 2 * pair * rows.stride, *const second = first + rows.stride;
    for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
      const std::int64_t column = panels.begin(panel), width = panels.width(panel);
      std::uint32_t* const to = packed + column * stride_of(pairs) + pair * width;
      for (std::int64_t c = 0; c < width; c += kLanes) {
        _mm512_store_si512(to + c, paired(first, second, column + c));
      }
    }
  }
}

// Adds 16 values of two rows from `at` on, which are given in pairs, too: those in bf16 as they lie there.
PO_BF16_PAIRS inline void add_rows(const Bf16*, const Bf16*, std::int64_t at, __m512i both, float* sums) {
  const __m512i ones = _mm512_set1_epi32(0x3F803F80);
  const __m512 added = Bf16Factors::add_product(_mm512_load_ps(sums + at), both, ones);
  _mm512_store_ps(sums + at, added);
}
PO_BF16_PAIRS inline void add_rows(const float* first, const float* second, std::int64_t at, __m512i,
                                   float* sums) {
  const __m512 pair = _mm512_add_ps(_mm512_loadu_ps(first + at), _mm512_loadu_ps(second + at));
  _mm512_store_ps(sums + at, _mm512_add_ps(_mm512_load_ps(sums + at), pair));
}

// The same to columns in eights, a tile's rows. Where there are `sums`, all rows are added to them.
template <typename Value>
PO_BF16_PAIRS void pack_eights(const Source<Value>& rows, std::int64_t columns, std::int64_t pairs,
                               std::uint32_t* eights, float* sums) {
  const std::int64_t next = kRows * stride_of(pairs);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (pair + kPairsAhead < pairs) prefetch_pair(rows, columns, pair + kPairsAhead);
    const Value *const first = rows.from + 2 * pair * rows.stride, *const second = first + rows.stride;
    std::uint32_t* to = eights + pair * kRows;
    for (std::int64_t c = 0; c < columns; c += kLanes, to += 2 * next) {
      const __m512i both = paired(first, second, c);
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(both));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + next), _mm512_extracti64x4_epi64(both, 1));
      if (sums != nullptr) add_rows(first, second, c, both, sums);
    }
  }
}

}  // namespace
}  // namespace pipeoptim::host

#endif
