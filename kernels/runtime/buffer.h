// Memory of one device: owning buffers, and an arena that hands out pieces of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "kernels/runtime/device.h"

namespace pipeoptim {

inline constexpr std::size_t kAlignment =
    256;  // bytes; what cudaMalloc gives, and cuBLASLt wants of its workspaces

constexpr std::size_t align_up(std::size_t bytes, std::size_t alignment = kAlignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

// Where host-visible memory of a CUDA program lies.
enum class MemoryKind {
  kDevice,  // the device's own (host: huge pages where they pay)
  kPinned   // host memory that the device can copy to and from asynchronously (host: the same as kDevice)
};

// Untyped owned memory, zero-filled at construction. Move-only.
class Memory {
 public:
  Memory() = default;
  Memory(Device device, std::size_t bytes, MemoryKind kind = MemoryKind::kDevice);
  ~Memory();
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept;

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device device_;
  MemoryKind kind_ = MemoryKind::kDevice;
};

// How many Memory objects this process ever allocated: a training loop must not change it.
std::int64_t allocation_count();

// Typed owned memory of `size` elements, zero-filled.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  Buffer(Device device, std::size_t size, MemoryKind kind = MemoryKind::kDevice)
      : memory_(device, size * sizeof(T), kind), size_(size) {}

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  std::size_t size() const { return size_; }
  Device device() const { return memory_.device(); }
  // Only for memory that the host can read.
  std::span<T> host_span() const { return {data(), size_}; }

 private:
  Memory memory_;
  std::size_t size_ = 0;
};

// Blocking copies for set-up, tests and checkpoints, between host memory and a device.
void copy_to_host(void* to, const void* from, std::size_t bytes, Device device);
void copy_from_host(void* to, const void* from, std::size_t bytes, Device device);

// Sizes and places of fp32 values in an arena.
inline std::size_t float_bytes(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); }
inline float* floats_at(std::byte* arena, std::size_t offset) {
  return reinterpret_cast<float*>(arena + offset);
}

// Lays pieces out one after the other, each aligned; first plan (reserve), then allocate once.
class ArenaPlan {
 public:
  // Returns the offset in bytes of a new piece.
  std::size_t reserve(std::size_t bytes) {
    const std::size_t offset = bytes_;
    bytes_ += align_up(bytes);
    return offset;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

}  // namespace pipeoptim
