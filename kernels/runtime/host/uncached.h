// Copies past the caches. An ordinary store reads the line that it writes to: for a result that is larger
// than the caches, and will have left them when it is read, that is a transfer for nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/runtime/macros.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace pipeoptim::host {

// Results of so many bytes are written past the caches: a last-level cache seldom holds more.
inline constexpr std::size_t kUncachedBytes = std::size_t{32} << 20;
inline bool leaves_caches(std::int64_t elements, std::size_t bytes_of_element) {
  return static_cast<std::size_t>(elements) * bytes_of_element >= kUncachedBytes;
}

// Other threads see what was copied after they have seen end_uncached().
PO_INLINED inline void copy_uncached(void* to, const void* from, std::size_t bytes) {
#if defined(__x86_64__)
  constexpr std::size_t kStore = sizeof(__m128i);
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  const std::size_t head = std::min(bytes, (0 - reinterpret_cast<std::uintptr_t>(target)) % kStore);
  std::memcpy(target, source, head);
  std::size_t i = head;
  for (; i + kStore <= bytes; i += kStore) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(target + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i)));
  }
  std::memcpy(target + i, source + i, bytes - i);
#else
  std::memcpy(to, from, bytes);
#endif
}

inline void end_uncached() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace pipeoptim::host
