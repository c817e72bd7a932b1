// Memory and blocking copies. Both happen at set-up only, so each takes a stream of its own for the moment:
// nothing of this runs on the default stream, and nothing is left to tear down at exit.
#include <cstring>
#include <string>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/cuda/cuda_check.h"

namespace pipeoptim::detail {
namespace {

using cuda::check;
using cuda::DeviceGuard;

class MomentaryStream {
 public:
  MomentaryStream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~MomentaryStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  MomentaryStream(const MomentaryStream&) = delete;
  MomentaryStream& operator=(const MomentaryStream&) = delete;

  cudaStream_t get() const { return stream_; }
  void synchronize() { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

void require_allocated(cudaError_t status, const char* call, std::size_t bytes) {
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw DeviceError(call, std::to_string(bytes) + " bytes were refused: not enough memory");
  }
  check(status, call);
}

void* allocate_pinned(std::size_t bytes) {
  void* memory = nullptr;
  require_allocated(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), "cudaHostAlloc", bytes);
  std::memset(memory, 0, bytes);
  return memory;
}

// The device that an address lies on; that of the other address where it is the host's.
Device device_of(const void* memory, const void* other) {
  for (const void* address : {memory, other}) {
    cudaPointerAttributes attributes{};
    check(cudaPointerGetAttributes(&attributes, address), "cudaPointerGetAttributes");
    if (attributes.type == cudaMemoryTypeDevice) return Device::cuda(attributes.device);
  }
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  return Device::cuda(current);
}

}  // namespace

void* cuda_allocate(Device device, std::size_t bytes, MemoryKind kind) {
  const DeviceGuard guard(device);
  if (kind == MemoryKind::kPinned) return allocate_pinned(bytes);
  MomentaryStream stream;
  void* memory = nullptr;
  require_allocated(cudaMallocAsync(&memory, bytes, stream.get()), "cudaMallocAsync", bytes);
  try {
    check(cudaMemsetAsync(memory, 0, bytes, stream.get()), "cudaMemsetAsync");
    stream.synchronize();
  } catch (...) {
    static_cast<void>(cudaFreeAsync(memory, stream.get()));
    throw;
  }
  return memory;
}

// As on the host, whoever frees has waited for the users. Memory of a pool may be given to cudaFree.
void cuda_free(Device device, void* memory, MemoryKind kind) noexcept {
  if (kind == MemoryKind::kPinned) {
    static_cast<void>(cudaFreeHost(memory));
    return;
  }
  int before = 0;
  const bool known = cudaGetDevice(&before) == cudaSuccess;
  if (known && before != device.ordinal) static_cast<void>(cudaSetDevice(device.ordinal));
  static_cast<void>(cudaFree(memory));
  if (known && before != device.ordinal) static_cast<void>(cudaSetDevice(before));
}

void cuda_copy(void* to, const void* from, std::size_t bytes) {
  const DeviceGuard guard(device_of(from, to));
  MomentaryStream stream;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()), "cudaMemcpyAsync");
  stream.synchronize();
}

}  // namespace pipeoptim::detail
