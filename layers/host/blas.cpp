// Matrix products on the host: dnnl_sgemm, which is row-major and follows the OpenMP thread count of the
// stream's worker.
#include <dnnl.h>

#include <atomic>

#include "kernels/runtime/error.h"
#include "layers/backend.h"

namespace pipeoptim::detail {
namespace {

char letter(Transpose transpose) { return transpose == Transpose::kYes ? 'T' : 'N'; }

dnnl_status_t multiply(const Gemm& p, const GemmBatch& batch, std::int64_t product) {
  const std::int64_t i = product % batch.count, j = product / batch.count;
  return dnnl_sgemm(letter(p.transpose_a), letter(p.transpose_b), p.rows, p.columns, p.inner, p.alpha,
                    p.a + i * batch.step_a + j * batch.outer_step_a, p.leading_a,
                    p.b + i * batch.step_b + j * batch.outer_step_b, p.leading_b, p.beta,
                    p.c + i * batch.step_c + j * batch.outer_step_c, p.leading_c);
}

void require_success(dnnl_status_t status) {
  if (status != dnnl_success) {
    throw DeviceError("dnnl_sgemm", "status " + std::to_string(static_cast<int>(status)));
  }
}

}  // namespace

void host_gemm_here(const Gemm& product) { require_success(multiply(product, {.count = 1}, 0)); }

void host_gemm(Stream& stream, const Gemm& product, const GemmBatch& batch) {
  const int threads = stream.threads();
  const std::int64_t count = batch.count * batch.outer;
  if (threads == 1 || count < threads) {
    stream.submit([product, batch, count] {
      for (std::int64_t i = 0; i < count; ++i) require_success(multiply(product, batch, i));
    });
    return;
  }
  // Many small products: one core each (oneDNN uses one thread inside of a parallel region).
  stream.submit([product, batch, count, threads] {
    std::atomic<dnnl_status_t> failure{dnnl_success};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t i = 0; i < count; ++i) {
      const dnnl_status_t status = multiply(product, batch, i);
      if (status != dnnl_success) failure = status;
    }
    require_success(failure);
  });
}

}  // namespace pipeoptim::detail
