#include "kernels/runtime/device.h"

#include <sched.h>

#include <fstream>
#include <stdexcept>
#include <string>

#include "kernels/runtime/backend.h"

namespace pipeoptim {

std::string to_string(const Device& device) {
  return device.backend == Backend::kHost ? "cpu" : "cuda:" + std::to_string(device.ordinal);
}

int device_count(Backend backend) { return backend == Backend::kHost ? 1 : detail::cuda_device_count(); }

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  const int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

std::string describe(const Device& device) {
  if (device.backend == Backend::kCuda) return detail::cuda_describe(device.ordinal);
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  std::string model = "unknown processor";
  while (std::getline(info, line)) {
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  return model + ", " + std::to_string(usable_cores()) + " usable cores";
}

bool enable_peer_access(Device device, Device peer) {
  if (device == peer) return true;
  if (device.backend != Backend::kCuda || peer.backend != Backend::kCuda) return false;
  return detail::cuda_enable_peer_access(device.ordinal, peer.ordinal);
}

void make_current(Device device) {
  require_usable(device);
  if (device.backend == Backend::kCuda) detail::cuda_make_current(device.ordinal);
}

void require_usable(const Device& device) {
  const int count = device_count(device.backend);
  if (device.ordinal >= 0 && device.ordinal < count) return;
  throw std::invalid_argument("device " + to_string(device) + " is not there: " + std::to_string(count) +
                              (device.backend == Backend::kCuda ? " CUDA devices usable" : " host devices"));
}

}  // namespace pipeoptim
