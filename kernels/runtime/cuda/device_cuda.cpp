#include <string>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/cuda/cuda_check.h"
#include "kernels/runtime/cuda/peer_access.h"

namespace pipeoptim {
namespace detail {

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

}  // namespace detail

namespace cuda {

bool enable_peer_access(Device device, Device peer) {
  int possible = 0;
  check(cudaDeviceCanAccessPeer(&possible, device.ordinal, peer.ordinal), "cudaDeviceCanAccessPeer");
  if (possible == 0) return false;

  const DeviceGuard guard(device);
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer.ordinal, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    static_cast<void>(cudaGetLastError());
  } else {
    check(status, "cudaDeviceEnablePeerAccess");
  }

  // Pools have access rights of their own.
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, peer.ordinal), "cudaDeviceGetDefaultMemPool");
  cudaMemAccessDesc access{};
  access.location.type = cudaMemLocationTypeDevice;
  access.location.id = device.ordinal;
  access.flags = cudaMemAccessFlagsProtReadWrite;
  check(cudaMemPoolSetAccess(pool, &access, 1), "cudaMemPoolSetAccess");
  return true;
}

}  // namespace cuda
}  // namespace pipeoptim
