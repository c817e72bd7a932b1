// Neighbouring channels of a row that a member of a team holds at once. On CUDA these are 4, moved by
// accesses of 16 bytes, where all rows start at multiples of that, else 1; on the host as many as fill vector
// registers.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include tiles.h only from .cu files"
#endif

#include <cstdint>

#include "kernels/runtime/macros.h"
#include "kernels/runtime/pack.h"

namespace pipeoptim {

// Whether rows of `channels` values allow accesses of 16 bytes in these arrays; for the device's
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

// Values to be read once as tile.value[v]: on CUDA in registers, on the host in their array, which is what
// its compiler makes vector code of.
#if defined(__CUDA_ARCH__)
template <int kWidth, typename T>
using Tile = Pack<kWidth, T>;
#else
template <int, typename T>
struct Tile {
  const T* value;
};
#endif

template <int kWidth, typename T>
PO_HD Tile<kWidth, T> load_tile(const T* from) {
#if defined(__CUDA_ARCH__)
  return load_pack<kWidth>(from);
#else
  return {from};
#endif
}

template <int kWidth, typename T>
PO_HD void store_tile(T* to, const Pack<kWidth, T>& tile) {
#if defined(__CUDA_ARCH__)
  store_pack(to, tile);
#else
  for (int v = 0; v < kWidth; ++v) to[v] = tile.value[v];
#endif
}

}  // namespace pipeoptim
