// Ranges of the host's time for a profiler that is attached (Nsight Systems); nothing otherwise.
#pragma once

#include <cstdint>

namespace pipeoptim {

// From construction to destruction, on the calling thread. `name` is a literal; `stage` becomes the category
// and `number` (a micro-batch, say) the payload, so that nothing is formatted where nobody looks.
class ProfilerRange {
 public:
  ProfilerRange(const char* name, int stage, std::int64_t number) noexcept;
  ~ProfilerRange();
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

}  // namespace pipeoptim
