#include "pipeline/app/processes.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/runtime/error.h"
#include "pipeline/app/interrupt.h"
#include "pipeline/app/setup.h"
#include "pipeline/processes/mpi_meeting.h"
#include "pipeline/processes/peer_links.h"

namespace pipeoptim::app {
namespace {

ProcessIdentity identity_of(const Options& options) {
  const auto given = [](int value, int none) {
    return value == none ? std::nullopt : std::optional<int>(value);
  };
  return find_identity(given(options.rank, Options::kNoRank), given(options.world_size, 0));
}

void require_divisible(const Options& options, int processes) {
  if (options.stages % processes != 0) {
    throw std::invalid_argument(
        fmt::format("{} processes for --stages {}: their number must be that of the stages, or divide it",
                    processes, options.stages));
  }
  if (options.devices > 1) {
    throw std::invalid_argument(
        fmt::format("--devices {}: each of several processes has one device", options.devices));
  }
  if (options.device == "cpu") {
    throw std::invalid_argument("several processes need --device cuda; on the cpu all stages share one");
  }
}

std::string name_of_rank(int rank, int stages_each) {
  if (stages_each == 1) return fmt::format("rank {} (stage {})", rank, rank);
  const int first = rank * stages_each;
  return fmt::format("rank {} (stages {} to {})", rank, first, first + stages_each - 1);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::string text_of(const ProcessGroup::Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

std::unique_ptr<ProcessGroup> join_processes(const Options& options) {
  ProcessGroupOptions group;
  group.identity = identity_of(options);
  if (group.identity.size == 1) return nullptr;
  require_divisible(options, group.identity.size);
  group.place = find_meeting_place(options.rendezvous);
  // Kernels that are loaded when they are first launched may wait for the whole device, and so for a
  // neighbour.
  static_cast<void>(setenv("CUDA_MODULE_LOADING", "EAGER", 0));
  if (!built_with_nccl()) {
    throw DataError("several processes need NCCL; this pipeoptim was built without it");
  }
  static_cast<void>(choose_device("cuda"));
  group.time_limit = std::chrono::seconds(options.rendezvous_timeout);
  group.name = [each = options.stages / group.identity.size](int rank) { return name_of_rank(rank, each); };
  group.stop_asked = InterruptGuard::asked;
  std::optional<MpiSession> mpi;  // for the rendezvous alone
  if (group.place.by_mpi) mpi.emplace();
  return std::make_unique<ProcessGroup>(std::move(group));
}

Role role_of(ProcessGroup* group) {
  if (group == nullptr) return {};
  return {group, group->rank() + 1 == group->size(), group->rank() == 0};
}

Device own_device(const Options& options) {
  const Device device =
      Device::cuda(identity_of(options).local_rank % std::max(1, device_count(Backend::kCuda)));
  make_current(device);
  return device;
}

void name_outputs(Options& options, const Role& role) {
  if (role.group == nullptr) return;
  for (std::string* path : {&options.version_trace, &options.trace}) {
    if (path->empty() || *path == "/dev/null") continue;
    std::filesystem::path named(*path);
    const std::string extension = named.extension().string();
    named.replace_extension(fmt::format("rank{}{}", role.group->rank(), extension));
    *path = named.string();
  }
  if (!role.reports) options.log.clear();
}

void require_same_settings(ProcessGroup& group, const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings) {
    if (!is_local(key)) text += key + " = " + value + "\n";
  }
  const auto all = group.all_gather(std::as_bytes(std::span(text)));
  const std::vector<std::string> expected = lines_of(text_of(all[0]));
  for (int rank = 1; rank < group.size(); ++rank) {
    const std::vector<std::string> actual = lines_of(text_of(all[static_cast<std::size_t>(rank)]));
    for (std::size_t i = 0; i < std::max(expected.size(), actual.size()); ++i) {
      const std::string here = i < expected.size() ? expected[i] : "nothing";
      const std::string there = i < actual.size() ? actual[i] : "nothing";
      if (here == there) continue;
      throw std::invalid_argument(
          fmt::format("{} has other settings than rank 0: {}, not {}", group.name(rank), there, here));
    }
  }
}

}  // namespace pipeoptim::app
