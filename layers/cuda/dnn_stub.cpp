// Stands in for dnn.cpp in a build without CUDA.
#include "kernels/runtime/error.h"
#include "layers/backend.h"

namespace pipeoptim::detail {

std::unique_ptr<ConvolutionPlan> make_cuda_convolution(Device, const ConvolutionSpec&) {
  throw DeviceError("make_convolution", "built without CUDA");
}

}  // namespace pipeoptim::detail
