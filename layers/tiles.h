// Neighbouring channels of a row that a member of a team holds at once. On CUDA these are 4, moved by
// accesses of 16 bytes (8 of bf16), where all rows start at multiples of that, else 1; on the host as many as
// fill vector registers.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include tiles.h only from .cu files"
#endif

#include <cstdint>
#include <type_traits>

#include "kernels/runtime/macros.h"
#include "kernels/runtime/pack.h"

namespace pipeoptim {

// Whether rows of `channels` values allow accesses of 4 values in these arrays; for the device's
// for_each_tile.
template <typename... Pointers>
bool allow_tiles(std::int64_t channels, Pointers... arrays) {
  return channels % 4 == 0 && allow_packs(arrays...);
}

// Calls body.template operator()<kWidth>(first channel) for the team's share of the channels.
template <typename Team, typename Body>
PO_HD void for_each_tile(const Team& team, std::int64_t channels, bool packs, const Body& body) {
#if defined(__CUDA_ARCH__)
  if (packs) {
    for (std::int64_t c = 4 * team.rank(); c < channels; c += 4 * team.size()) body.template operator()<4>(c);
  } else {
    for (std::int64_t c = team.rank(); c < channels; c += team.size()) body.template operator()<1>(c);
  }
#else
  static_cast<void>(packs);
  static_cast<void>(team);  // of one
  std::int64_t c = 0;
  for (; c + 16 <= channels; c += 16) body.template operator()<16>(c);
  for (; c + 8 <= channels; c += 8) body.template operator()<8>(c);
  for (; c < channels; ++c) body.template operator()<1>(c);
#endif
}

// A part of a matrix.
struct Slab {
  std::int64_t row_begin, row_end;
  std::int64_t column_begin, column_end;
};

// The rows begin, begin + step, ... before end.
struct RowSteps {
  std::int64_t begin, end, step;
};

// A member's place in a slab: neighbouring members have neighbouring tiles of a row; where a row has fewer
// tiles than the team has members, these take several rows at once.
template <typename Team, int kWidth>
struct SlabMember {
  std::int64_t column, column_step;
  RowSteps rows;
  int tiles;     // of a row
  bool at_once;  // whether several members share a tile's rows
  bool idle;

  PO_HD SlabMember(const Team& team, const Slab& slab)
      : tiles(static_cast<int>((slab.column_end - slab.column_begin) / kWidth)),
        at_once(2 * tiles <= team.size()) {
    const int group = at_once ? team.rank() / tiles : 0, groups = at_once ? team.size() / tiles : 1;
    const int tile = at_once ? team.rank() % tiles : team.rank();
    column = slab.column_begin + std::int64_t{kWidth} * tile;
    column_step = std::int64_t{kWidth} * (at_once ? tiles : team.size());
    rows = {slab.row_begin + group, slab.row_end, groups};
    idle = group >= groups;
  }
};

#if !defined(__CUDA_ARCH__)
// The host's tiles of a slab: wide ones, so that several cache lines of each row are read at once.
constexpr std::int64_t kWideTile = 64;
template <typename Body>
PO_HD void for_each_wide_tile(const Slab& slab, const RowSteps& rows, const Body& body) {
  std::int64_t c = slab.column_begin;
  for (; c + kWideTile <= slab.column_end; c += kWideTile) body.template operator()<kWideTile>(c, rows);
  for (; c + 16 <= slab.column_end; c += 16) body.template operator()<16>(c, rows);
  for (; c + 8 <= slab.column_end; c += 8) body.template operator()<8>(c, rows);
  for (; c < slab.column_end; ++c) body.template operator()<1>(c, rows);
}
#endif

// Calls body.template operator()<kWidth>(first channel, rows) for the team's share of a slab.
template <typename Team, typename Body>
PO_HD void for_each_tile_of_rows(const Team& team, const Slab& slab, bool packs, const Body& body) {
#if defined(__CUDA_ARCH__)
  const auto share = [&]<int kWidth>() {
    const SlabMember<Team, kWidth> member(team, slab);
    if (member.idle) return;
    for (std::int64_t c = member.column; c < slab.column_end; c += member.column_step) {
      body.template operator()<kWidth>(c, member.rows);
    }
  };
  packs ? share.template operator()<4>() : share.template operator()<1>();
#else
  static_cast<void>(team);
  static_cast<void>(packs);
  // Rows that are more than a tile are gone through one by one, as they lie.
  const bool narrow = slab.column_end - slab.column_begin <= kWideTile;
  const std::int64_t step = narrow ? slab.row_end - slab.row_begin : 1;
  for (std::int64_t r = slab.row_begin; r < slab.row_end; r += step) {
    for_each_wide_tile(slab, {r, r + step, 1}, body);
  }
#endif
}

// In place of `packs`, where sums are kept in types that would take too many registers four at a time.
struct SingleValues {};

// Sums over the rows of a slab, in a fixed order. terms.template operator()<kWidth>(first channel, rows)
// gives a Sums<kWidth>, which has add(another); store.template operator()<kWidth>(first channel, sums) gets
// that of all rows, once a tile. On CUDA the team is a block.
template <template <int> typename Sums, typename Team, typename Packs, typename Terms, typename Store>
PO_HD void sum_rows(const Team& team, const Slab& slab, Packs packs, const Terms& terms, const Store& store) {
#if defined(__CUDA_ARCH__)
  const auto share = [&]<int kWidth>() {
    const SlabMember<Team, kWidth> member(team, slab);
    if (!member.at_once) {
      for (std::int64_t c = member.column; c < slab.column_end; c += member.column_step) {
        store.template operator()<kWidth>(c, terms.template operator()<kWidth>(c, member.rows));
      }
      return;
    }
    Sums<kWidth> sums{};
    if (!member.idle) sums = terms.template operator()<kWidth>(member.column, member.rows);
    sums = team.fold(sums, member.tiles);
    if (team.rank() < member.tiles) store.template operator()<kWidth>(member.column, sums);
  };
  if constexpr (std::is_same_v<Packs, SingleValues>) {
    share.template operator()<1>();
  } else {
    packs ? share.template operator()<4>() : share.template operator()<1>();
  }
#else
  static_cast<void>(team);
  static_cast<void>(packs);
  const auto tile = [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
    store.template operator()<kWidth>(c, terms.template operator()<kWidth>(c, rows));
  };
  for_each_wide_tile(slab, {slab.row_begin, slab.row_end, 1}, tile);
#endif
}

// Values to be read once as tile.value[v], those of bf16 as fp32: on CUDA in registers, on the host in their
// array, which is what its compiler makes vector code of.
#if defined(__CUDA_ARCH__)
template <int kWidth, typename T>
using Tile = Pack<kWidth, std::conditional_t<std::is_same_v<T, Bf16>, float, T>>;
#else
struct WidenedValues {
  const Bf16* from;
  PO_HD float operator[](int v) const { return to_float(from[v]); }
};
template <int, typename T>
struct Tile {
  std::conditional_t<std::is_same_v<T, Bf16>, WidenedValues, const T*> value;
};
#endif

template <int kWidth, typename T>
PO_HD Tile<kWidth, T> load_tile(const T* from) {
#if !defined(__CUDA_ARCH__)
  return {{from}};
#else
  if constexpr (std::is_same_v<T, Bf16>) {
    return load_floats<kWidth>(from);
  } else {
    return load_pack<kWidth>(from);
  }
#endif
}

template <int kWidth, typename T>
PO_HD void store_tile(T* to, const Pack<kWidth, T>& tile) {
#if defined(__CUDA_ARCH__)
  store_pack(to, tile);
#else
  PO_SIMD
  for (int v = 0; v < kWidth; ++v) to[v] = tile.value[v];
#endif
}
template <int kWidth>
PO_HD void store_tile(Bf16* to, const Pack<kWidth>& tile) {
#if defined(__CUDA_ARCH__)
  store_floats(to, tile);
#else
  PO_SIMD
  for (int v = 0; v < kWidth; ++v) to[v] = to_bf16(tile.value[v]);
#endif
}

// Chunk `index` of `length` rows.
PO_HD Slab row_slab(std::int64_t index, std::int64_t length, std::int64_t rows, std::int64_t columns) {
  const std::int64_t begin = index * length, end = begin + length;
  return {begin, end < rows ? end : rows, 0, columns};
}

// Columns of partial results that one team adds up: where rows are many, so are the teams.
constexpr std::int64_t kSlabColumns = 32;
constexpr std::int64_t slabs_of(std::int64_t columns) { return (columns + kSlabColumns - 1) / kSlabColumns; }
PO_HD Slab column_slab(std::int64_t index, std::int64_t rows, std::int64_t columns) {
  const std::int64_t begin = index * kSlabColumns, end = begin + kSlabColumns;
  return {0, rows, begin, end < columns ? end : columns};
}

// kCount sums of each column, for sum_rows().
template <int kCount, typename T = float>
struct Sums {
  template <int kWidth>
  struct Of {
    Pack<kWidth, T> sum[kCount];
    PO_HD void add(const Of& other) {
      for (int k = 0; k < kCount; ++k) {
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) sum[k].value[v] += other.sum[k].value[v];
      }
    }
  };
};

#if !defined(__CUDA_ARCH__)
// The host's sums of wide rows: the rows are read as they lie, four at a time, while the sums of some columns
// stay in the first-level cache. The additions and their order are those of the tiles.
template <typename T, typename Store>
PO_HD void sum_wide_columns(const Slab& slab, const T* values, std::int64_t columns, const Store& store) {
  constexpr std::int64_t kMostColumns = 1024;
  for (std::int64_t first = slab.column_begin; first < slab.column_end; first += kMostColumns) {
    const std::int64_t left = slab.column_end - first, count = left < kMostColumns ? left : kMostColumns;
    const auto value = [](const T* from) PO_INLINED { return load_tile<1>(from).value[0]; };
    float sums[kMostColumns];
    for (std::int64_t c = 0; c < count; ++c) sums[c] = 0;
    std::int64_t r = slab.row_begin;
    for (; r + 4 <= slab.row_end; r += 4) {
      const T *const a = values + r * columns + first, *const b = a + columns, *const d = b + columns,
                     *const e = d + columns;
      PO_SIMD
      for (std::int64_t c = 0; c < count; ++c) {
        sums[c] = (((sums[c] + value(a + c)) + value(b + c)) + value(d + c)) + value(e + c);
      }
    }
    for (; r < slab.row_end; ++r) {
      const T* const row = values + r * columns + first;
      PO_SIMD
      for (std::int64_t c = 0; c < count; ++c) sums[c] += value(row + c);
    }
    const auto tile = [&]<int kWidth>(std::int64_t c, const RowSteps&) PO_INLINED {
      Sums<1>::Of<kWidth> all;
      for (int v = 0; v < kWidth; ++v) all.sum[0].value[v] = sums[c - first + v];
      store.template operator()<kWidth>(c, all);
    };
    for_each_wide_tile({0, 1, first, first + count}, {0, 1, 1}, tile);
  }
}
#endif

// As sum_rows, of the columns of dense rows.
template <typename Team, typename T, typename Store>
PO_HD void sum_columns(const Team& team, const Slab& slab, const T* values, std::int64_t columns, bool packs,
                       const Store& store) {
#if !defined(__CUDA_ARCH__)
  if (slab.column_end - slab.column_begin > kWideTile) {
    return sum_wide_columns(slab, values, columns, store);
  }
#endif
  sum_rows<Sums<1>::Of>(
      team, slab, packs,
      [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
        Sums<1>::Of<kWidth> all{};
        for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
          const auto tile = load_tile<kWidth>(values + r * columns + c);
          PO_SIMD
          for (int v = 0; v < kWidth; ++v) all.sum[0].value[v] += tile.value[v];
        }
        return all;
      },
      store);
}

}  // namespace pipeoptim
