// How the host's threads divide a product among them, and add what they have summed apart.
#pragma once

#include <cstdint>

#include "layers/layer.h"

namespace pipeoptim::host {

// Blocks of b that hold a.
inline std::int64_t quotient_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

// An extent in parts of multiples of `unit`, which differ by at most one unit.
struct Parts {
  std::int64_t extent, unit, count;

  static Parts of_at_most(std::int64_t most, std::int64_t extent, std::int64_t unit) {
    return {extent, unit, quotient_up(extent, most)};
  }
  Range operator[](std::int64_t part) const {
    return {extent / unit * part / count * unit, extent / unit * (part + 1) / count * unit};
  }
  std::int64_t largest() const { return quotient_up(extent / unit, count) * unit; }
};

// Whether threads are busy for at least four fifths of the time that so many units take.
inline bool keeps_busy(int threads, std::int64_t units) {
  return 5 * units >= 4 * quotient_up(units, threads) * threads;
}

// Stores or adds the sum of `parts` sums of each of `count` values, [part][value], in order.
inline void add_parts(int threads, const float* sums, int parts, std::int64_t count, GradientMode mode,
                      float* to) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += sums[part * count + i];
    to[i] = mode == GradientMode::kAdd ? to[i] + sum : sum;
  }
}

}  // namespace pipeoptim::host
