// What the benchmarks let the environment choose.
#pragma once

#include <cstdlib>

#include "layers/provider.h"

namespace pipeoptim::bench {

// PIPEOPTIM_BENCH_PRECISION: fp32 (default), tf32 or bf16.
inline MatrixPrecision precision() {
  const char* variable = std::getenv("PIPEOPTIM_BENCH_PRECISION");
  return matrix_precision(variable ? variable : "fp32");
}

// PIPEOPTIM_BENCH_ROW_KERNELS: own (default) or cudnn.
inline RowKernels row_kernels() {
  const char* variable = std::getenv("PIPEOPTIM_BENCH_ROW_KERNELS");
  return pipeoptim::row_kernels(variable ? variable : "own");
}

}  // namespace pipeoptim::bench
