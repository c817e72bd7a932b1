// Reductions along a row, in a fixed order: a member of a team keeps one value a lane, which are joined over
// the lanes and then over the team. The lanes are what the host's compiler makes vectors of.
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
constexpr int kLanes = 1;      // of for_each_column
constexpr int kTileLanes = 4;  // of for_each_tile: the widest tile
#else
constexpr int kLanes = 16;
constexpr int kTileLanes = 16;
#endif

// Calls body(column, lane) for the team's share of the columns.
template <typename Team, typename Body>
PO_HD void for_each_column(const Team& team, std::int32_t columns, const Body& body) {
  std::int32_t c = team.rank() * kLanes;
  for (; c + kLanes <= columns; c += team.size() * kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) body(c + lane, lane);
  }
  for (int lane = 0; c + lane < columns && lane < kLanes; ++lane) body(c + lane, lane);
}

// One value a lane.
template <typename T, int kCount = kLanes>
struct Lanes {
  T value[kCount];

  PO_HD explicit Lanes(T first) {
    for (T& lane : value) lane = first;
  }
  template <typename Team, typename Op>
  PO_HD T reduce(const Team& team, Op op) const {
    T all = value[0];
    for (int lane = 1; lane < kCount; ++lane) all = op(all, value[lane]);
    return team.reduce(all, op);
  }
};

}  // namespace pipeoptim
