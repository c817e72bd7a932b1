// Packs of neighbouring elements that are loaded and stored at once, for accesses of 16 bytes on CUDA. The
// host uses packs of one element and leaves the rest to the vectorizer.
#pragma once

#include <cstdint>

#include "kernels/runtime/bf16.h"
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

// The same of values that are computed with in fp32 and may be stored in bf16.
template <int kWidth>
PO_HD Pack<kWidth> load_floats(const float* from) {
  return load_pack<kWidth>(from);
}
template <int kWidth>
PO_HD Pack<kWidth> load_floats(const Bf16* from) {
  const Pack<kWidth, Bf16> stored = load_pack<kWidth>(from);
  Pack<kWidth> values;
  for (int i = 0; i < kWidth; ++i) values.value[i] = to_float(stored.value[i]);
  return values;
}
template <int kWidth>
PO_HD void store_floats(float* to, const Pack<kWidth>& values) {
  store_pack(to, values);
}
template <int kWidth>
PO_HD void store_floats(Bf16* to, const Pack<kWidth>& values) {
  Pack<kWidth, Bf16> stored;
  for (int i = 0; i < kWidth; ++i) stored.value[i] = to_bf16(values.value[i]);
  store_pack(to, stored);
}

// Whether all arrays start where accesses of 16 bytes may.
template <typename... Pointers>
bool allow_packs(Pointers... arrays) {
  return ((reinterpret_cast<std::uintptr_t>(arrays) % 16 == 0) && ...);
}

}  // namespace pipeoptim
