// Reductions along a row, in a fixed order: a member of a team keeps one value a lane, whose lanes are
// folded in halves and then joined over the team. The lanes are what the host's compiler makes vectors of.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include lanes.h only from .cu files"
#endif

#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

struct LargerOf {
  PO_HD float operator()(float a, float b) const { return a > b ? a : b; }
};
struct SmallerOf {
  PO_HD std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a < b ? a : b; }
};
struct SumOf {
  template <typename T>
  PO_HD T operator()(T a, T b) const {
    return a + b;
  }
};

#if defined(__CUDA_ARCH__)
constexpr int kTileLanes = 4;  // the widest of for_each_tile
#else
constexpr int kTileLanes = 16;
#endif

// One value a lane.
template <typename T>
struct Lanes {
  T value[kTileLanes];

  PO_HD explicit Lanes(T first) {
    for (T& lane : value) lane = first;
  }
  template <typename Team, typename Op>
  PO_HD T reduce(const Team& team, Op op) const {
    Lanes folded = *this;
    for (int half = kTileLanes / 2; half > 0; half /= 2) {
      PO_SIMD
      for (int lane = 0; lane < half; ++lane) {
        folded.value[lane] = op(folded.value[lane], folded.value[half + lane]);
      }
    }
    return team.reduce(folded.value[0], op);
  }
};

}  // namespace pipeoptim
