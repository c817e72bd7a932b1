#include "pipeline/app/memory.h"

#include <fmt/format.h>

#include <fstream>

namespace pipeoptim::app {
namespace {

// A line of the process's own status in bytes; 0 where there is none.
std::size_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::size_t kibibytes = 0;
    if (word == key && status >> kibibytes) return 1024 * kibibytes;
  }
  return 0;
}

}  // namespace

std::string bytes_text(std::size_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} B", bytes);
  if (bytes < std::size_t{1} << 20) return fmt::format("{:.1f} KiB", value / 1024);
  if (bytes < std::size_t{1} << 30) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.2f} GiB", value / (1 << 30));
}

std::size_t planned_bytes(const std::vector<StageInfo>& stages) {
  std::size_t sum = 0;
  for (const StageInfo& stage : stages) sum += stage.memory.total();
  return sum;
}

MemoryGrowth::MemoryGrowth() {
  // Forgets the peak so far, that of reading the data. Where it may not, most() can be too high.
  std::ofstream("/proc/self/clear_refs") << "5" << std::flush;
  before_ = status_bytes("VmRSS:");
}

std::size_t MemoryGrowth::most() const {
  const std::size_t peak = status_bytes("VmHWM:");
  return peak > before_ ? peak - before_ : 0;
}

}  // namespace pipeoptim::app
