// The host side of the launches: a SIMD loop over the cores that the stream owns.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/runtime/instruction_set.h"
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

// Versions of a loop: `flatten` inlines all that it calls, and so compiles it for these instructions. Only
// what is inlined is, and no function of another name: nothing that a linker could choose for an older
// processor.
#if defined(__x86_64__)
template <typename Loop>
__attribute__((target("avx2"), flatten)) void run_avx2(const Loop& loop) {
  loop();
}
template <typename Loop>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"), flatten)) void run_avx512(const Loop& loop) {
  loop();
}
#endif

template <typename Loop>
void run_with(InstructionSet set, const Loop& loop) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx512) return run_avx512(loop);
  if (set == InstructionSet::kAvx2) return run_avx2(loop);
#endif
  static_cast<void>(set);
  loop();
}

template <typename Body>
void run_range(InstructionSet set, const Body& body, std::int64_t begin, std::int64_t end) {
  run_with(set, [&] {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) body(i);
  });
}

template <typename Body>
void run_rows(InstructionSet set, const Body& body, std::int64_t begin, std::int64_t end) {
  run_with(set, [&] {
    for (std::int64_t row = begin; row < end; ++row) body(row, HostTeam{});
  });
}

// Calls work(begin, end) for each thread's share of n, which begins at a multiple of 64.
template <typename Work>
void for_shares(int threads, std::int64_t n, const Work& work) {
  if (threads == 1) return work(std::int64_t{0}, n);
  const std::int64_t chunk = ((n + threads - 1) / threads + 63) / 64 * 64;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    work(std::min<std::int64_t>(n, thread * chunk), std::min<std::int64_t>(n, (thread + 1) * chunk));
  }
}

template <typename Body>
void for_each(Stream& stream, std::int64_t n, const Body& body) {
  const int threads = n < kSerialElements ? 1 : stream.threads();
  stream.submit([n, threads, set = instruction_set(), body] {
    for_shares(threads, n, [&](std::int64_t begin, std::int64_t end) { run_range(set, body, begin, end); });
  });
}

template <typename Body>
void for_each_row(Stream& stream, std::int64_t rows, const Body& body) {
  const int threads = static_cast<int>(std::min<std::int64_t>(rows, stream.threads()));
  stream.submit([rows, threads, set = instruction_set(), body] {
    if (threads == 1) return run_rows(set, body, 0, rows);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) {
      run_rows(set, body, rows * thread / threads, rows * (thread + 1) / threads);
    }
  });
}

}  // namespace host
}  // namespace pipeoptim
