// Which processor runs the work: the host's cores or one CUDA device.
#pragma once

#include <cstddef>
#include <string>

namespace pipeoptim {

enum class Backend { kHost, kCuda };

// A value that names a device; streams, events and buffers are made for one.
struct Device {
  Backend backend = Backend::kHost;
  int ordinal = 0;

  static Device host() { return {Backend::kHost, 0}; }
  static Device cuda(int ordinal) { return {Backend::kCuda, ordinal}; }
  friend bool operator==(const Device& a, const Device& b) {
    return a.backend == b.backend && a.ordinal == b.ordinal;
  }
};

// "cpu" or "cuda:N".
std::string to_string(const Device& device);

// The number of usable devices: 1 for the host; for CUDA 0 where the build, the driver or the card is
// missing.
int device_count(Backend backend);

// One line about the processor (model name, cores or SMs, memory).
std::string describe(const Device& device);

// Throws std::invalid_argument, naming the device and what is there, when it cannot be used.
void require_usable(const Device& device);

// Lets `device` reach the memory of `peer` directly, that of Memory included. False where the machine cannot:
// copies then still work, staged by the driver. May be called again.
bool enable_peer_access(Device device, Device peer);

// A process that uses one CUDA device calls this first, so that no context appears on another one. On the
// host it does nothing.
void make_current(Device device);

// Cores that this process may run on (its affinity mask), at least 1.
int usable_cores();

}  // namespace pipeoptim
