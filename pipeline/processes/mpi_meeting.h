// The rendezvous by MPI: what rank 0 tells the others comes as a message, so that nobody has to name a place.
#pragma once

#include <string>

#include "pipeline/processes/identity.h"

namespace pipeoptim {

bool built_with_mpi();

// MPI for as long as this lives, unless it is there already. For programs: a process can initialise MPI once
// only, so that it is not for a library to do.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  bool ours_ = false;
};

// Rank 0's text, for all. Called by every process of MPI_COMM_WORLD, without a time limit. Throws DeviceError
// where MPI is not initialised or was not built in, and on all ranks where one of them is another in
// `identity`.
std::string broadcast_by_mpi(const ProcessIdentity& identity, std::string text);

}  // namespace pipeoptim
