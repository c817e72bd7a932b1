// What all CUDA files share: checked calls and the current device.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <string>

#include "kernels/runtime/device.h"
#include "kernels/runtime/error.h"

namespace pipeoptim::cuda {

// Throws DeviceError for anything but success. The error is not left behind as the runtime's "last error".
inline void check(cudaError_t status, const char* call,
                  std::source_location where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw DeviceError(call, std::string(cudaGetErrorName(status)) + ", " + cudaGetErrorString(status), where);
}

// Makes a device the calling thread's current one and puts the former back. Putting device 0 back makes a
// context on it: a process that owns another device calls cudaSetDevice once, first thing.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device) : device_(device.ordinal) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (before_ != device_) static_cast<void>(cudaSetDevice(before_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

}  // namespace pipeoptim::cuda
