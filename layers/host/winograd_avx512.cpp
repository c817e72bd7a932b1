#include "layers/host/avx.h"
#include "layers/host/winograd_points.h"

#if defined(__x86_64__)

#define PO_VECTORS PO_AVX512

namespace pipeoptim::host::winograd {
namespace {

using Vector = __m512;
constexpr std::int64_t kLanes = 16;

PO_AVX512 inline Vector load(const float* from) { return _mm512_loadu_ps(from); }
PO_AVX512 inline void store(float* to, Vector values) { _mm512_storeu_ps(to, values); }
PO_AVX512 inline Vector broadcast(float value) { return _mm512_set1_ps(value); }
PO_AVX512 inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }

}  // namespace
}  // namespace pipeoptim::host::winograd

#include "layers/host/winograd_code.h"

#endif

namespace pipeoptim::host::winograd {

const Code* avx512_code() {
#if defined(__x86_64__)
  if (has_avx512()) return &kCode;
#endif
  return nullptr;
}

}  // namespace pipeoptim::host::winograd
