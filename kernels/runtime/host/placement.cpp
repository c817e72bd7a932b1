#include "kernels/runtime/placement.h"

#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "kernels/runtime/error.h"

#if defined(PIPEOPTIM_WITH_HWLOC)
#include <hwloc.h>
#endif

namespace pipeoptim {
namespace {

enum class Domains { kRespected, kIgnored };

// The first unit of each worker. A worker that would cross the end of a domain, but fits into the next one,
// starts there; nullopt where the units do not suffice for that.
std::optional<std::vector<std::size_t>> first_units(std::span<const Core> units, std::span<const int> threads,
                                                    Domains domains) {
  const auto end_of_domain = [&](std::size_t from) {
    std::size_t end = from;
    while (end < units.size() && units[end].domain == units[from].domain) ++end;
    return end;
  };
  std::vector<std::size_t> first;
  std::size_t next = 0;
  for (const int count : threads) {
    const auto needed = static_cast<std::size_t>(count);
    if (domains == Domains::kRespected && next < units.size()) {
      const std::size_t boundary = end_of_domain(next);
      const bool crosses = next + needed > boundary;
      if (crosses && boundary < units.size() && end_of_domain(boundary) - boundary >= needed) next = boundary;
    }
    first.push_back(next);
    next += needed;
    if (next > units.size()) return std::nullopt;
  }
  return first;
}

std::vector<Core> single_processors(std::span<const Core> cores) {
  std::vector<Core> units;
  for (const Core& core : cores) {
    for (const int processor : core.processors) units.push_back({{processor}, core.domain});
  }
  return units;
}

}  // namespace

std::vector<std::vector<int>> place_workers(std::span<const Core> cores, std::span<const int> threads) {
  const auto wanted = static_cast<std::size_t>(std::accumulate(threads.begin(), threads.end(), 0));
  std::vector<Core> units(cores.begin(), cores.end());
  if (units.size() < wanted) units = single_processors(cores);
  auto first = first_units(units, threads, Domains::kRespected);
  if (!first) first = first_units(units, threads, Domains::kIgnored);
  if (!first) return {};
  std::vector<std::vector<int>> places(threads.size());
  for (std::size_t worker = 0; worker < threads.size(); ++worker) {
    for (int i = 0; i < threads[worker]; ++i) {
      const std::vector<int>& own = units[(*first)[worker] + static_cast<std::size_t>(i)].processors;
      places[worker].insert(places[worker].end(), own.begin(), own.end());
    }
  }
  return places;
}

#if defined(PIPEOPTIM_WITH_HWLOC)

namespace {

struct DestroyTopology {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
using Topology = std::unique_ptr<hwloc_topology, DestroyTopology>;

struct FreeBitmap {
  void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

Topology new_topology() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) throw DeviceError("hwloc_topology_init", "failed");
  return Topology(topology);
}

// What the cores below it share: the third-level cache, else a NUMA node's memory.
int domain_of(hwloc_topology_t topology, hwloc_obj_t core) {
  for (hwloc_obj_t above = core->parent; above != nullptr; above = above->parent) {
    if (above->type == HWLOC_OBJ_L3CACHE) return static_cast<int>(above->logical_index);
  }
  for (hwloc_obj_t node = nullptr;
       (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr;) {
    if (hwloc_bitmap_isincluded(core->cpuset, node->cpuset)) return static_cast<int>(node->logical_index);
  }
  return 0;
}

std::vector<Core> cores_of(hwloc_topology_t topology) {
  std::vector<Core> cores;
  for (hwloc_obj_t object = nullptr;
       (object = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, object)) != nullptr;) {
    Core core{.processors = {}, .domain = domain_of(topology, object)};
    for (int i = hwloc_bitmap_first(object->cpuset); i >= 0; i = hwloc_bitmap_next(object->cpuset, i)) {
      core.processors.push_back(i);
    }
    if (!core.processors.empty()) cores.push_back(std::move(core));
  }
  return cores;
}

}  // namespace

std::vector<Core> usable_machine_cores() {
  const Topology topology = new_topology();
  if (hwloc_topology_load(topology.get()) != 0) return {};
  // hwloc itself leaves out what the system forbids; this, what the process was started without (taskset).
  const Bitmap own(hwloc_bitmap_alloc());
  if (hwloc_get_cpubind(topology.get(), own.get(), HWLOC_CPUBIND_PROCESS) != 0 ||
      hwloc_topology_restrict(topology.get(), own.get(), 0) != 0) {
    return {};
  }
  return cores_of(topology.get());
}

std::vector<Core> synthetic_cores(const std::string& machine) {
  const Topology topology = new_topology();
  if (hwloc_topology_set_synthetic(topology.get(), machine.c_str()) != 0 ||
      hwloc_topology_load(topology.get()) != 0) {
    throw std::invalid_argument("hwloc knows no machine '" + machine + "'");
  }
  return cores_of(topology.get());
}

std::string placement_library() { return std::string("hwloc ") + HWLOC_VERSION; }

#else

std::vector<Core> usable_machine_cores() { return {}; }
std::vector<Core> synthetic_cores(const std::string&) {
  throw std::logic_error("synthetic machines need hwloc; this build has none");
}
std::string placement_library() { return {}; }

#endif

}  // namespace pipeoptim
