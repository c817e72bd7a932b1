// AVX2 and AVX-512 for functions that are compiled for them: PO_AVX2, PO_AVX512.
#pragma once

#include "kernels/runtime/instruction_set.h"

#if defined(__x86_64__)
// GCC 12 takes what its own header leaves undefined for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#define PO_AVX2 __attribute__((target("avx2,fma")))
#define PO_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace pipeoptim::host {

// Whether the processor has them, AVX2 with FMA. PIPEOPTIM_ISA, which promises the same bits, does not matter
// to products, convolutions, attention's heads and GELU in bf16, ours or oneDNN's.
inline bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}
inline bool has_avx512() { return usable_instruction_sets().back() == InstructionSet::kAvx512; }

}  // namespace pipeoptim::host
