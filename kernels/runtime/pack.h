// Packs of neighbouring elements that are loaded and stored at once, for accesses of 16 bytes on CUDA. The
// host uses packs of one element and leaves the rest to the vectorizer.
#pragma once

#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

template <int kWidth, typename T = float>
struct alignas(kWidth * sizeof(T)) Pack {
  T value[kWidth];
};

template <int kWidth, typename T>
PO_HD Pack<kWidth, T> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<kWidth, T>*>(from);
}

template <int kWidth, typename T>
PO_HD void store_pack(T* to, const Pack<kWidth, T>& pack) {
  *reinterpret_cast<Pack<kWidth, T>*>(to) = pack;
}

// Whether all arrays start where accesses of 16 bytes may.
template <typename... Pointers>
bool allow_packs(Pointers... arrays) {
  return ((reinterpret_cast<std::uintptr_t>(arrays) % 16 == 0) && ...);
}

}  // namespace pipeoptim
