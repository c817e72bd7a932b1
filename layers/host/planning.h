// What the host's plans share: the number of threads that they are made for, which oneDNN fixes when a
// primitive is made, and what they need of the processor.
#pragma once

#include <omp.h>

#include <dnnl.hpp>
#include <stdexcept>
#include <string>

#include "kernels/runtime/error.h"
#include "kernels/runtime/stream.h"
#include "layers/tensor.h"

namespace pipeoptim::host {

// While it lives, primitives are made for this many threads.
class PlanningThreads {
 public:
  explicit PlanningThreads(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~PlanningThreads() { omp_set_num_threads(before_); }
  PlanningThreads(const PlanningThreads&) = delete;
  PlanningThreads& operator=(const PlanningThreads&) = delete;

 private:
  int before_;
};

inline void require_threads(const char* operation, int planned, const Stream& stream) {
  if (stream.threads() != planned) {
    throw std::logic_error(std::string(operation) + " planned for " + std::to_string(planned) +
                           " threads, run on " + std::to_string(stream.threads()));
  }
}

inline dnnl::memory::data_type dnnl_type(ElementType type) {
  return type == ElementType::kBf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

// oneDNN multiplies bf16 with AVX-512, where the processor has no instructions for it, by way of fp32.
inline void require_bf16() {
  constexpr auto kLeast = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
  if ((static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kLeast) != kLeast) {
    throw DeviceError("products in bf16 on the host", "this processor has no AVX-512; fp32 needs none");
  }
}

}  // namespace pipeoptim::host
