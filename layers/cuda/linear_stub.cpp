// Stands in for linear.cpp in a build without CUDA.
#include "kernels/runtime/error.h"
#include "layers/backend.h"

namespace pipeoptim::detail {

std::unique_ptr<LinearPlan> make_cuda_linear(Device, const LinearSpec&) {
  throw DeviceError("make_linear", "built without CUDA");
}

}  // namespace pipeoptim::detail
