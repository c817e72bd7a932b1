// In which precision the benchmarks multiply.
#pragma once

#include <cstdlib>

#include "layers/provider.h"

namespace pipeoptim::bench {

// PIPEOPTIM_BENCH_PRECISION: fp32 (default), tf32 or bf16.
inline MatrixPrecision precision() {
  const char* variable = std::getenv("PIPEOPTIM_BENCH_PRECISION");
  return matrix_precision(variable ? variable : "fp32");
}

}  // namespace pipeoptim::bench
