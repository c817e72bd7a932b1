// The program as one of several processes: joining the others, and who does what for all.
#pragma once

#include <exception>
#include <memory>
#include <string>

#include "kernels/runtime/device.h"
#include "pipeline/app/config.h"
#include "pipeline/app/options.h"
#include "pipeline/processes/process_group.h"

namespace pipeoptim::app {

// What of a run this process does. A lone process does it all.
struct Role {
  ProcessGroup* group = nullptr;  // null: there is one process
  bool reports = true;            // has the last stage: progress, log, metrics
  bool saves = true;              // rank 0: writes the weights of all
};

// Waits for the other processes; null where there is one. Throws std::invalid_argument where numbers do not
// fit, DataError where there is no device, DeviceError where the others do not come.
std::unique_ptr<ProcessGroup> join_processes(const Options& options);
Role role_of(ProcessGroup* group);

// Calls work(group), null for a lone process. What it throws ends the other processes, too.
template <typename Work>
auto with_processes(const Options& options, const Work& work) {
  const std::unique_ptr<ProcessGroup> group = join_processes(options);
  try {
    return work(group.get());
  } catch (const std::exception& error) {
    if (group) group->fail(error.what());
    throw;
  }
}

// The device of this process among those that it sees. Makes it current, before anything else is done there.
Device own_device(const Options& options);

// Files that each process writes get its rank in their names: trace.json becomes trace.rank2.json.
void name_outputs(Options& options, const Role& role);

// Throws std::invalid_argument, naming rank and setting, where another process has other settings than rank
// 0, local ones apart.
void require_same_settings(ProcessGroup& group, const Settings& settings);

}  // namespace pipeoptim::app
