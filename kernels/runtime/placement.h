// Which of the machine's processors the workers of host stages run on.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace pipeoptim {

// A core: its processors, by the system's numbers, and the group of cores that share its last cache (or,
// where none does, its memory).
struct Core {
  std::vector<int> processors;
  int domain = 0;
};

// The cores that this process may use, neighbours beside each other. Empty where the build has no hwloc or
// the system does not say.
std::vector<Core> usable_machine_cores();

// Those of a machine in hwloc's words, such as "pack:2 l3:1 core:4 pu:2", for tests.
std::vector<Core> synthetic_cores(const std::string& machine);

// "hwloc 2.9.0", or empty where the build has none.
std::string placement_library();

// Processors for each worker, given their numbers of threads: consecutive cores, or processors where there
// are too few cores, that no other worker has. A worker stays in one domain where it fits into one and the
// machine is large enough. Empty where there are not even as many processors as threads.
std::vector<std::vector<int>> place_workers(std::span<const Core> cores, std::span<const int> threads);

}  // namespace pipeoptim
