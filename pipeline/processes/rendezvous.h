// How the processes of a run find each other: rank 0 listens, the others connect, twice each.
#pragma once

#include <chrono>
#include <vector>

#include "pipeline/processes/identity.h"
#include "pipeline/processes/socket.h"

namespace pipeoptim {

// By rank: with rank 0 there is one of each kind to every other process, elsewhere to rank 0 alone.
struct Connections {
  std::vector<Socket> calls;   // for the collective calls of the main threads
  std::vector<Socket> alarms;  // for the watchers
};

// Blocks until all are there. Throws DeviceError, naming the place and who is missing, when the time is over,
// and where two processes disagree about who they are.
Connections meet(const ProcessIdentity& identity, const MeetingPlace& place,
                 std::chrono::milliseconds time_limit);

}  // namespace pipeoptim
