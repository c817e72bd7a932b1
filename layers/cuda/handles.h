// What the CUDA files of this folder share: library handles, and how cuBLAS computes.
#pragma once

#include <cublas_v2.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "kernels/runtime/cuda/cuda_check.h"
#include "kernels/runtime/stream.h"
#include "layers/layer.h"

namespace pipeoptim::cuda {

// A vendor's create/destroy pair as an owner.
template <auto kDestroy>
struct Destroyer {
  template <typename T>
  void operator()(T* object) const noexcept {
    static_cast<void>(kDestroy(object));
  }
};
template <typename Handle, auto kDestroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer<kDestroy>>;

// The calling thread's handle for each stream: handles are not for several threads at once, and a handle's
// own workspace is not for several streams at once. Keeps a handle as long as the thread lives; a new stream
// at the address of an old one may take it over, since the old one's work is done.
template <typename Handle, auto kDestroy>
class HandleCache {
 public:
  template <typename Create>
  Handle get(Device device, void* stream, const Create& create) {
    auto& handle = handles_[{device.ordinal, stream}];
    if (!handle) handle.reset(create());
    return handle.get();
  }

 private:
  std::map<std::pair<int, void*>, Owned<Handle, kDestroy>> handles_;
};

// Of products whose operands are fp32.
inline cublasComputeType_t compute_type(MatrixPrecision precision) {
  switch (precision) {
    case MatrixPrecision::kFp32:
      return CUBLAS_COMPUTE_32F;
    case MatrixPrecision::kTf32:
      return CUBLAS_COMPUTE_32F_FAST_TF32;
    case MatrixPrecision::kBf16:
      return CUBLAS_COMPUTE_32F_FAST_16BF;
  }
  throw std::logic_error("compute_type: a precision that is none");
}

}  // namespace pipeoptim::cuda
