// What the benchmarks share. Each measures what it asks about and the ceiling above it alternately, in the
// same loop, and reports medians: a shared machine changes its speed from one second to the next.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim::bench {

// Tokens from all of a vocabulary.
inline void write_tokens(std::span<float> to, std::int64_t vocabulary) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    to[i] = static_cast<float>(i * 7919 % static_cast<std::size_t>(vocabulary));
  }
}

// PIPEOPTIM_BENCH_THREADS, else every core that the process may use.
inline int threads() {
  const char* variable = std::getenv("PIPEOPTIM_BENCH_THREADS");
  if (!variable) return usable_cores();
  const int count = std::atoi(variable);
  if (count < 1) throw std::invalid_argument("PIPEOPTIM_BENCH_THREADS is '" + std::string(variable) + "'");
  return count;
}

// PIPEOPTIM_BENCH_DEVICE: cpu (default), or cuda for the first CUDA device.
inline Device device() {
  const char* variable = std::getenv("PIPEOPTIM_BENCH_DEVICE");
  const std::string name = variable ? variable : "cpu";
  if (name != "cpu" && name != "cuda") {
    throw std::invalid_argument("PIPEOPTIM_BENCH_DEVICE is '" + name + "'; known: cpu, cuda");
  }
  const Device chosen = name == "cpu" ? Device::host() : Device::cuda(0);
  require_usable(chosen);
  return chosen;
}

class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  double median() const {
    if (values_.empty()) throw std::logic_error("the median of no samples");
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    const std::size_t half = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

 private:
  std::vector<double> values_;
};

// From the start to the end of what `enqueue` puts on the stream, by the stream's own clock.
template <typename Enqueue>
double seconds(Stream& stream, const Enqueue& enqueue) {
  Event begin(stream.device(), EventTiming::kOn), end(stream.device(), EventTiming::kOn);
  stream.record(begin);
  enqueue();
  stream.record(end);
  stream.synchronize();
  return end.milliseconds_since(begin) * 1e-3;
}

// Values in +-`scale`, none of them near 0, where arithmetic can be slow. kPinned: the host can read them,
// too.
inline Buffer<float> random_buffer(std::int64_t size, float scale = 1,
                                   MemoryKind kind = MemoryKind::kDevice) {
  Buffer<float> values(Device::host(), static_cast<std::size_t>(size));
  std::uint32_t state = 1;
  for (float& value : values.host_span()) {
    state = state * 1664525U + 1013904223U;
    const float size_of_value = scale * (0.1F + static_cast<float>(state >> 9) * 0x1p-24F);
    value = (state & 256U) != 0 ? size_of_value : -size_of_value;
  }
  if (device() == Device::host()) return values;
  Buffer<float> buffer(device(), values.size(), kind);
  copy_from_host(buffer.data(), values.data(), values.size() * sizeof(float), device());
  return buffer;
}

// The part of [0, n) that is one thread's, in whole cache lines.
struct Part {
  std::int64_t begin, end;
};
inline Part part_of(std::int64_t n, int thread, int count) {
  const std::int64_t length = ((n + count - 1) / count + 63) / 64 * 64;
  return {std::min(n, thread * length), std::min(n, (thread + 1) * length)};
}

// Runs the benchmarks that are registered, those of `add_more` among them, with one table of counters, and
// short where nothing else is asked.
inline int run(int argc, char** argv, void (*add_more)() = nullptr) {
  std::string table = "--benchmark_counters_tabular=true", time = "--benchmark_min_time=0.1";
  std::vector<char*> arguments{argv[0], table.data(), time.data()};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;
  try {
    benchmark::AddCustomContext("device", describe(device()));
    benchmark::AddCustomContext("threads", std::to_string(threads()));
    if (add_more) add_more();
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace pipeoptim::bench
