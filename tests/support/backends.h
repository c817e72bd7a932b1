// Contract tests run once for each backend of the build; CUDA without a device (or cudasim) is a skip.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim {

// For messages and CTest's names.
inline void PrintTo(Backend backend, std::ostream* to) {
  *to << (backend == Backend::kHost ? "host" : "cuda");
}

}  // namespace pipeoptim

namespace pipeoptim::test {

inline std::vector<Backend> built_backends() {
#if defined(PIPEOPTIM_WITH_CUDA)
  return {Backend::kHost, Backend::kCuda};
#else
  return {Backend::kHost};
#endif
}

inline std::string backend_name(const testing::TestParamInfo<Backend>& info) {
  return info.param == Backend::kHost ? "host" : "cuda";
}

// The start of the name of a case.
inline std::string backend_prefix(Backend backend) { return backend == Backend::kHost ? "Host" : "Cuda"; }

class BackendTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (device_count(GetParam()) == 0) GTEST_SKIP() << "no CUDA device";
  }
  Device device() const { return {GetParam(), 0}; }

  template <typename T>
  Buffer<T> on_device(const std::vector<T>& values) const {
    Buffer<T> buffer(device(), values.size());
    copy_from_host(buffer.data(), values.data(), values.size() * sizeof(T), device());
    return buffer;
  }
  template <typename T>
  std::vector<T> on_host(const Buffer<T>& buffer) const {
    std::vector<T> values(buffer.size());
    copy_to_host(values.data(), buffer.data(), values.size() * sizeof(T), device());
    return values;
  }
};

}  // namespace pipeoptim::test
