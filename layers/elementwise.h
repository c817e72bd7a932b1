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

// y[i] = function(x[i]), perhaps of another type
template <typename Function, typename From = float, typename To = From>
struct Map {
  const From* x;
  To* y;
  Function function = {};

  static constexpr int kWidth = 4;
  PO_HD void operator()(std::int64_t i) const { at<1>(i); }
  template <int kPack>
  PO_HD void at(std::int64_t i) const {
    const Pack<kPack, From> values = load_pack<kPack>(x + i);
    Pack<kPack, To> results;
    for (int j = 0; j < kPack; ++j) results.value[j] = function(values.value[j]);
    store_pack(y + i, results);
  }
  bool packs() const { return allow_packs(x, y); }
};

// y[i] = function(a[i], b[i])
template <typename Function>
struct Map2 {
  const float* a;
  const float* b;
  float* y;
  Function function = {};

  static constexpr int kWidth = 4;
  PO_HD void operator()(std::int64_t i) const { at<1>(i); }
  template <int kPack>
  PO_HD void at(std::int64_t i) const {
    Pack<kPack, float> first = load_pack<kPack>(a + i);
    const Pack<kPack, float> second = load_pack<kPack>(b + i);
    for (int j = 0; j < kPack; ++j) first.value[j] = function(first.value[j], second.value[j]);
    store_pack(y + i, first);
  }
  bool packs() const { return allow_packs(a, b, y); }
};

}  // namespace pipeoptim
