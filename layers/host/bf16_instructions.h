// The AVX-512 instructions for bf16, for functions that are compiled for them: PO_BF16_PAIRS.
#pragma once

#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "layers/host/avx.h"

#if defined(__x86_64__)
#define PO_BF16_PAIRS __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif

namespace pipeoptim::host {

// Whether the processor has them.
inline bool multiplies_bf16_pairs() {
#if defined(__x86_64__)
  static const bool there = has_avx512() && __builtin_cpu_supports("avx512bf16");
  return there;
#else
  return false;
#endif
}

#if defined(__x86_64__)
// 16 values of two rows from `at` on in pairs, a dword each; null stands for zeros.
PO_BF16_PAIRS inline __m512i paired(const Bf16* first, const Bf16* second, std::int64_t at) {
  const __m512i places = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7,
                                          38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const auto lower = [at](const Bf16* values) PO_BF16_PAIRS {
    if (values == nullptr) return _mm512_setzero_si512();
    return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + at)));
  };
  return _mm512_permutex2var_epi16(lower(first), places, lower(second));
}
// The same of two rows in fp32, which are there, rounded.
PO_BF16_PAIRS inline __m512i paired(const float* first, const float* second, std::int64_t at) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                          22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second + at), _mm512_loadu_ps(first + at));
  return _mm512_permutexvar_epi16(places, (__m512i)both);
}
#endif

}  // namespace pipeoptim::host
