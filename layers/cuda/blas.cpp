// Matrix products on CUDA: cuBLAS. Where nobody asks for TF32 or bf16, host and device agree to rounding.
#include <cublas_v2.h>

#include "kernels/runtime/pack.h"
#include "layers/backend.h"
#include "layers/batch_addresses.h"
#include "layers/cuda/handles.h"

namespace pipeoptim::cuda {
namespace {

void check(cublasStatus_t status, const char* call,
           std::source_location where = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS) throw DeviceError(call, cublasGetStatusString(status), where);
}

cublasHandle_t create_handle() {
  cublasHandle_t handle = nullptr;
  check(cublasCreate(&handle), "cublasCreate");
  return handle;
}

// A handle that enqueues on the stream. Its device must be the current one.
cublasHandle_t handle_of(const Stream& stream) {
  thread_local HandleCache<cublasHandle_t, cublasDestroy> cache;
  const cublasHandle_t handle = cache.get(stream.device(), stream.native(), create_handle);
  check(cublasSetStream(handle, static_cast<cudaStream_t>(stream.native())), "cublasSetStream");
  return handle;
}

cublasOperation_t operation(Transpose transpose) {
  return transpose == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

// cuBLAS is column-major: it sees our matrices transposed, so c^T = op(b)^T op(a)^T.
void multiply_strided(cublasHandle_t handle, const Gemm& p, const GemmBatch& batch) {
  const cublasOperation_t first = operation(p.transpose_b);
  const cublasOperation_t second = operation(p.transpose_a);
  const cublasComputeType_t compute = compute_type(p.precision);
  if (batch.count == 1) {
    check(cublasGemmEx_64(handle, first, second, p.columns, p.rows, p.inner, &p.alpha, p.b, CUDA_R_32F,
                          p.leading_b, p.a, CUDA_R_32F, p.leading_a, &p.beta, p.c, CUDA_R_32F, p.leading_c,
                          compute, CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx_64");
    return;
  }
  check(cublasGemmStridedBatchedEx_64(handle, first, second, p.columns, p.rows, p.inner, &p.alpha, p.b,
                                      CUDA_R_32F, p.leading_b, batch.step_b, p.a, CUDA_R_32F, p.leading_a,
                                      batch.step_a, &p.beta, p.c, CUDA_R_32F, p.leading_c, batch.step_c,
                                      batch.count, compute, CUBLAS_GEMM_DEFAULT),
        "cublasGemmStridedBatchedEx_64");
}

// cuBLAS does not see addresses that are in a list: tensor cores want them at multiples of 16 bytes.
bool may_be_listed(const Gemm& p, const GemmBatch& batch) {
  if (batch.addresses == nullptr || batch.count == 1 || batch.outer == 1) return false;
  if (p.precision == MatrixPrecision::kFp32) return true;
  const auto whole = [](auto... steps) { return ((steps % 4 == 0) && ...); };
  return allow_packs(p.a, p.b, p.c) && whole(batch.step_a, batch.step_b, batch.step_c, batch.outer_step_a,
                                             batch.outer_step_b, batch.outer_step_c);
}

void multiply_listed(cublasHandle_t handle, const Gemm& p, const GemmBatch& batch) {
  const std::int64_t all = batch.count * batch.outer;
  const auto list = [&](int matrix) {
    return reinterpret_cast<const void* const*>(batch.addresses + matrix * all);
  };
  check(cublasGemmBatchedEx_64(handle, operation(p.transpose_b), operation(p.transpose_a), p.columns, p.rows,
                               p.inner, &p.alpha, list(1), CUDA_R_32F, p.leading_b, list(0), CUDA_R_32F,
                               p.leading_a, &p.beta, const_cast<void* const*>(list(2)), CUDA_R_32F,
                               p.leading_c, all, compute_type(p.precision), CUBLAS_GEMM_DEFAULT),
        "cublasGemmBatchedEx_64");
}

// cuBLAS has one step: a call for each of the outer or the inner products, whichever are fewer.
void multiply(cublasHandle_t handle, const Gemm& p, const GemmBatch& batch) {
  GemmBatch within = batch, around{batch.outer, batch.outer_step_a, batch.outer_step_b, batch.outer_step_c};
  if (batch.count < batch.outer) {
    within = around;
    around = batch;
  }
  within.outer = 1;
  Gemm shifted = p;
  for (std::int64_t i = 0; i < around.count; ++i) {
    multiply_strided(handle, shifted, within);
    shifted.a += around.step_a;
    shifted.b += around.step_b;
    shifted.c += around.step_c;
  }
}

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

void cuda_gemm(Stream& stream, const Gemm& product, const GemmBatch& batch) {
  const cuda::DeviceGuard current(stream.device());
  const cublasHandle_t handle = cuda::handle_of(stream);
  if (!cuda::may_be_listed(product, batch)) return cuda::multiply(handle, product, batch);
  fill_addresses(stream, product, batch);
  cuda::multiply_listed(handle, product, batch);
}

}  // namespace pipeoptim::detail
