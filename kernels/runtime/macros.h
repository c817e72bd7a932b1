// PO_HD marks what both the host and the device compiler must be able to call.
#pragma once

#if defined(__CUDACC__)
#define PO_HD __host__ __device__ __forceinline__
#else
#define PO_HD inline __attribute__((always_inline))
#endif
