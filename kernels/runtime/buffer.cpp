#include "kernels/runtime/buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/error.h"

namespace pipeoptim {
namespace {

std::atomic<std::int64_t> allocations{0};

// First touches of 4 KiB pages are slow: huge pages are asked for where at least half of them is used.
void* host_allocate(std::size_t bytes) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const bool huge = bytes >= kHugePage / 2;
  const std::size_t alignment = huge ? kHugePage : kAlignment;
  void* memory = std::aligned_alloc(alignment, align_up(bytes, alignment));
  if (!memory) {
    throw DeviceError("host memory allocation",
                      std::to_string(bytes) + " bytes were refused: not enough memory");
  }
  // Advice: failure is harmless. The end of the last page stays untouched unless that is a huge one.
  if (huge) madvise(memory, (bytes + kHugePage / 2) / kHugePage * kHugePage, MADV_HUGEPAGE);
  std::memset(memory, 0, bytes);
  return memory;
}

}  // namespace

Memory::Memory(Device device, std::size_t bytes, MemoryKind kind)
    : bytes_(bytes), device_(device), kind_(kind) {
  if (bytes == 0) return;
  void* memory =
      device.backend == Backend::kHost ? host_allocate(bytes) : detail::cuda_allocate(device, bytes, kind);
  data_ = static_cast<std::byte*>(memory);
  ++allocations;
}

Memory::~Memory() {
  if (!data_) return;
  if (device_.backend == Backend::kHost) {
    std::free(data_);
  } else {
    detail::cuda_free(device_, data_, kind_);
  }
}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  std::swap(kind_, other.kind_);
  return *this;
}

std::int64_t allocation_count() { return allocations; }

void copy_to_host(void* to, const void* from, std::size_t bytes, Device device) {
  if (bytes == 0) return;
  if (device.backend == Backend::kCuda) return detail::cuda_copy(to, from, bytes);
  std::memcpy(to, from, bytes);
}

void copy_from_host(void* to, const void* from, std::size_t bytes, Device device) {
  copy_to_host(to, from, bytes, device);
}

}  // namespace pipeoptim
