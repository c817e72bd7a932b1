// The host side of the launches: a SIMD loop over the cores that the stream owns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/runtime/macros.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim {

// A team of one: the host's row bodies see a single lane.
struct HostTeam {
  PO_HD static constexpr int rank() { return 0; }
  PO_HD static constexpr int size() { return 1; }
  template <typename T, typename Op>
  PO_HD T reduce(T value, Op) const {
    return value;
  }
  // Not called: nvcc's device pass looks at the host's team, too.
  template <typename T>
  PO_HD T fold(const T& value, int) const {
    return value;
  }
};

namespace host {

inline constexpr std::int64_t kSerialElements = 8192;  // below this a second thread costs more than it saves

template <typename Body>
void run_range(const Body& body, std::int64_t begin, std::int64_t end) {
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) body(i);
}

template <typename Body>
void for_each(Stream& stream, std::int64_t n, const Body& body) {
  const int threads = n < kSerialElements ? 1 : stream.threads();
  stream.submit([n, threads, body] {
    if (threads == 1) return run_range(body, 0, n);
    const std::int64_t chunk = ((n + threads - 1) / threads + 63) / 64 * 64;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) {
      run_range(body, std::min<std::int64_t>(n, thread * chunk),
                std::min<std::int64_t>(n, (thread + 1) * chunk));
    }
  });
}

template <typename Body>
void for_each_row(Stream& stream, std::int64_t rows, const Body& body) {
  const int threads = static_cast<int>(std::min<std::int64_t>(rows, stream.threads()));
  stream.submit([rows, threads, body] {
    if (threads == 1) {
      for (std::int64_t row = 0; row < rows; ++row) body(row, HostTeam{});
      return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < rows; ++row) body(row, HostTeam{});
  });
}

}  // namespace host
}  // namespace pipeoptim
