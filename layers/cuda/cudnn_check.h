// Checked calls of cuDNN.
#pragma once

#include <cudnn.h>

#include <array>
#include <source_location>
#include <string>

#include "kernels/runtime/error.h"

namespace pipeoptim::cuda {

// Throws DeviceError with cuDNN's own explanation, where it has one, for anything but success.
inline void check(cudnnStatus_t status, const std::string& call,
                  std::source_location where = std::source_location::current()) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::array<char, 512> explanation{};
  cudnnGetLastErrorString(explanation.data(), explanation.size());
  std::string text = cudnnGetErrorString(status);
  if (explanation[0] != '\0') text += std::string(", ") + explanation.data();
  throw DeviceError(call, text, where);
}

}  // namespace pipeoptim::cuda
