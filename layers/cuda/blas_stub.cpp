// Stands in for blas.cpp in a build without CUDA.
#include "kernels/runtime/error.h"
#include "layers/backend.h"

namespace pipeoptim::detail {

void cuda_gemm(Stream&, const Gemm&, const GemmBatch&) { throw DeviceError("gemm", "built without CUDA"); }

}  // namespace pipeoptim::detail
