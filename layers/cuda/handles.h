// What the CUDA files of this folder share: checked calls, the current device, and library handles.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>

#include "kernels/runtime/error.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim::cuda {

inline void require_success(cudaError_t status, const char* call,
                            std::source_location where = std::source_location::current()) {
  if (status != cudaSuccess) throw DeviceError(call, cudaGetErrorString(status), where);
}

// Makes a device the calling thread's current one and puts the former back.
class CurrentDevice {
 public:
  explicit CurrentDevice(Device device) : device_(device.ordinal) {
    require_success(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) require_success(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (before_ != device_) static_cast<void>(cudaSetDevice(before_));
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int device_;
  int before_ = 0;
};

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

}  // namespace pipeoptim::cuda
