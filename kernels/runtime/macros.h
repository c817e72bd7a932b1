// PO_HD marks what both the host and the device compiler must be able to call.
#pragma once

#if defined(__CUDACC__)
#define PO_HD __host__ __device__ __forceinline__
#else
#define PO_HD inline __attribute__((always_inline))
#endif

// Behind the parameters of a lambda within a body: inlined for sure. Left to itself g++ may not, and what it
// does not inline on the host is compiled for the baseline's instructions only (instruction_set.h).
#define PO_INLINED __attribute__((always_inline))

// In front of a loop: how often nvcc unrolls it (what it does itself can take more registers than there are),
// and that the host's compiler is to make vector code of it where it would unroll it first.
#define PO_PRAGMA(text) _Pragma(#text)
#if defined(__CUDA_ARCH__)
#define PO_UNROLL(times) PO_PRAGMA(unroll times)
#define PO_SIMD
#else
#define PO_UNROLL(times)
#define PO_SIMD PO_PRAGMA(omp simd)
#endif
