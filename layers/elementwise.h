// Bodies for for_each that map arrays element by element, in accesses of 16 bytes on CUDA. A function is a
// functor; its result may replace an argument in place.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include elementwise.h only from .cu files"
#endif

#include <cstdint>

#include "kernels/runtime/macros.h"
#include "kernels/runtime/pack.h"

namespace pipeoptim {

// Elements of a pack: 16 bytes of the wider type.
template <typename A, typename B>
constexpr int kPackWidth = static_cast<int>(16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B)));

// y[i] = function(x[i]), from fp32 to fp32; From and To are float or Bf16.
template <typename Function, typename From = float, typename To = From>
struct Map {
  const From* x;
  To* y;
  Function function = {};

  static constexpr int kWidth = kPackWidth<From, To>;
  PO_HD void operator()(std::int64_t i) const { at<1>(i); }
  template <int kPack>
  PO_HD void at(std::int64_t i) const {
    Pack<kPack> values = load_floats<kPack>(x + i);
    for (int j = 0; j < kPack; ++j) values.value[j] = function(values.value[j]);
    store_floats(y + i, values);
  }
  bool packs() const { return allow_packs(x, y); }
};

// y[i] = function(a[i], b[i]), likewise.
template <typename Function, typename T = float>
struct Map2 {
  const T* a;
  const T* b;
  T* y;
  Function function = {};

  static constexpr int kWidth = kPackWidth<T, T>;
  PO_HD void operator()(std::int64_t i) const { at<1>(i); }
  template <int kPack>
  PO_HD void at(std::int64_t i) const {
    Pack<kPack> first = load_floats<kPack>(a + i);
    const Pack<kPack> second = load_floats<kPack>(b + i);
    for (int j = 0; j < kPack; ++j) first.value[j] = function(first.value[j], second.value[j]);
    store_floats(y + i, first);
  }
  bool packs() const { return allow_packs(a, b, y); }
};

}  // namespace pipeoptim
