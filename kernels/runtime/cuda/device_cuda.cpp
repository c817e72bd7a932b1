#include <string>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/cuda/cuda_check.h"

namespace pipeoptim::detail {

// A missing driver and a missing card are no errors here: nothing is usable.
int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());
  return 0;
}

std::string cuda_describe(int ordinal) {
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) + " SMs, " +
         std::to_string(properties.totalGlobalMem >> 20) + " MiB";
}

void cuda_make_current(int ordinal) { cuda::check(cudaSetDevice(ordinal), "cudaSetDevice"); }

bool cuda_enable_peer_access(int ordinal, int peer) {
  using cuda::check;
  int possible = 0;
  check(cudaDeviceCanAccessPeer(&possible, ordinal, peer), "cudaDeviceCanAccessPeer");
  if (possible == 0) return false;

  const cuda::DeviceGuard guard(Device::cuda(ordinal));
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    static_cast<void>(cudaGetLastError());
  } else {
    check(status, "cudaDeviceEnablePeerAccess");
  }

  // Pools have access rights of their own.
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, peer), "cudaDeviceGetDefaultMemPool");
  cudaMemAccessDesc access{};
  access.location.type = cudaMemLocationTypeDevice;
  access.location.id = ordinal;
  access.flags = cudaMemAccessFlagsProtReadWrite;
  check(cudaMemPoolSetAccess(pool, &access, 1), "cudaMemPoolSetAccess");
  return true;
}

}  // namespace pipeoptim::detail
