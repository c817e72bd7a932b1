// The ceiling of a pass over arrays: a loop that reads and writes the same arrays and does next to no
// arithmetic.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <vector>

#include "bench/support.h"
#include "bench/traffic.h"

namespace pipeoptim::bench {

// Eight bf16 values, rounded towards 0: to nearest costs more than a ceiling should.
inline __m128i upper_halves(__m256 values) {
  const __m256i halves = _mm256_srli_epi32(_mm256_castps_si256(values), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

enum class Stores { kOrdinary, kNonTemporal };  // of the arrays that are only written

template <int kRead, int kKept, int kWritten, int kRounded, Stores kStores>
struct StreamLoop {
  static constexpr std::int64_t kLanes = 8;
  const float* read[kRead];
  float* kept[kKept + 1];  // + 1: there may be none
  float* written[kWritten + 1];
  Bf16* rounded[kRounded + 1];
  float zero;  // at run time, so that the compiler cannot leave out anything

  void operator()(Part part) const {
    if constexpr (kKept + kWritten + kRounded == 0) {
      only_read(part);
    } else {
      read_and_write(part);
    }
  }

 private:
  void read_and_write(Part part) const {
    for (std::int64_t i = part.begin; i < part.end; i += kLanes) {
      __m256 sum = _mm256_load_ps(read[0] + i);
      for (int k = 1; k < kRead; ++k) sum = _mm256_add_ps(sum, _mm256_load_ps(read[k] + i));
      const __m256 nothing = _mm256_mul_ps(sum, _mm256_set1_ps(zero));
      for (int k = 0; k < kKept; ++k) {
        _mm256_store_ps(kept[k] + i, _mm256_add_ps(_mm256_load_ps(kept[k] + i), nothing));
      }
      for (int k = 0; k < kWritten; ++k) {
        if constexpr (kStores == Stores::kOrdinary) _mm256_store_ps(written[k] + i, sum);
        if constexpr (kStores == Stores::kNonTemporal) _mm256_stream_ps(written[k] + i, sum);
      }
      for (int k = 0; k < kRounded; ++k) {
        const auto to = reinterpret_cast<__m128i*>(rounded[k] + i);
        if constexpr (kStores == Stores::kOrdinary) _mm_store_si128(to, upper_halves(sum));
        if constexpr (kStores == Stores::kNonTemporal) _mm_stream_si128(to, upper_halves(sum));
      }
    }
  }

  // As many sums as hide the time that an addition takes.
  void only_read(Part part) const {
    static_assert(kRead == 1);
    constexpr int kSums = 4;
    __m256 sums[kSums] = {};
    std::int64_t i = part.begin;
    for (; i + kSums * kLanes <= part.end; i += kSums * kLanes) {
      for (int s = 0; s < kSums; ++s) {
        sums[s] = _mm256_add_ps(sums[s], _mm256_load_ps(read[0] + i + s * kLanes));
      }
    }
    for (; i < part.end; i += kLanes) sums[0] = _mm256_add_ps(sums[0], _mm256_load_ps(read[0] + i));
    benchmark::DoNotOptimize(sums);
  }
};

template <int kRead, int kKept, int kWritten, int kRounded, Stores kStores>
void enqueue_loop(Stream& stream, const Traffic& traffic, std::int64_t n) {
  StreamLoop<kRead, kKept, kWritten, kRounded, kStores> loop{};
  std::copy(traffic.read.begin(), traffic.read.end(), loop.read);
  std::copy(traffic.kept.begin(), traffic.kept.end(), loop.kept);
  std::copy(traffic.written.begin(), traffic.written.end(), loop.written);
  std::copy(traffic.rounded.begin(), traffic.rounded.end(), loop.rounded);
  constexpr std::int64_t kSerial = 8192;  // as the library's loops: no second thread for so few
  const int count = n <= kSerial ? 1 : stream.threads();
  stream.submit([loop, n, count] {
    if (count == 1) return loop({0, n});
#pragma omp parallel for num_threads(count) schedule(static, 1)
    for (int thread = 0; thread < count; ++thread) loop(part_of(n, thread, count));
  });
}

template <Stores kStores>
void enqueue(Stream& stream, const Traffic& traffic, std::int64_t n) {
  if (stream.device().backend == Backend::kCuda) return enqueue_device_loop(stream, traffic, n);
  with_counts(traffic, [&]<int kRead, int kKept, int kWritten, int kRounded>() {
    enqueue_loop<kRead, kKept, kWritten, kRounded, kStores>(stream, traffic, n);
  });
}

// Seconds for what `enqueue` puts on the stream, which works on `n` elements. Short passes are measured many
// at a time: waking the stream's thread takes longer than they do.
template <typename Enqueue>
double pass_seconds(Stream& stream, std::int64_t n, const Enqueue& enqueue) {
  const int count = static_cast<int>(std::clamp<std::int64_t>((1 << 18) / n, 1, 64));
  return seconds(stream,
                 [&] {
                   for (int i = 0; i < count; ++i) enqueue();
                 }) /
         count;
}

// The time that the loops of some passes take, one after the other; of both kinds of stores the faster. `n`
// is a multiple of 8.
class Ceiling {
 public:
  Ceiling(Stream& stream, std::vector<Traffic> passes, std::int64_t n)
      : stream_(stream), passes_(std::move(passes)), n_(n) {}

  void measure() {
    ordinary_.add(time<Stores::kOrdinary>());
    non_temporal_.add(time<Stores::kNonTemporal>());
  }
  double median() const { return std::min(ordinary_.median(), non_temporal_.median()); }
  int bytes_per_element() const {
    int bytes = 0;
    for (const Traffic& pass : passes_) bytes += pass.bytes_per_element();
    return bytes;
  }

 private:
  template <Stores kStores>
  double time() {
    return pass_seconds(stream_, n_, [this] {
      for (const Traffic& pass : passes_) enqueue<kStores>(stream_, pass, n_);
    });
  }

  Stream& stream_;
  std::vector<Traffic> passes_;
  std::int64_t n_;
  Samples ordinary_, non_temporal_;
};

}  // namespace pipeoptim::bench
