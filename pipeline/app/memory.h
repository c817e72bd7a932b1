// How much memory a run was planned to need and how much it took.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "pipeline/engine.h"

namespace pipeoptim::app {

std::string bytes_text(std::size_t bytes);  // "12.3 MiB"

std::size_t planned_bytes(const std::vector<StageInfo>& stages);

// How much more memory than at its making the process had in use at most since then. Making one forgets the
// process's earlier peak, also for whoever asks the system for it.
class MemoryGrowth {
 public:
  MemoryGrowth();
  std::size_t most() const;  // bytes; 0 where the system does not say

 private:
  std::size_t before_ = 0;
};

}  // namespace pipeoptim::app
