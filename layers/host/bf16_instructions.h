// The AVX-512 instructions for bf16, for functions that are compiled for them: PO_BF16_PAIRS.
#pragma once

#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "layers/host/avx512.h"

#if defined(__x86_64__)
#define PO_BF16_PAIRS __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif

namespace pipeoptim::host {

// Whether the processor has them.
inline bool multiplies_bf16_pairs() {
#if defined(__x86_64__)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

#if defined(__x86_64__)
// 16 values from `at` on as dwords; null stands for zeros.
PO_BF16_PAIRS inline __m512i widened(const Bf16* values, std::int64_t at = 0) {
  if (values == nullptr) return _mm512_setzero_si512();
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + at)));
}
#endif

}  // namespace pipeoptim::host
