// The rendezvous by MPI: what rank 0 tells the others comes as a message, so that nobody has to name a place.
#pragma once

#include <string>

#include "pipeline/processes/identity.h"

namespace pipeoptim {

bool built_with_mpi();

// Rank 0's text, for all. Called by every process of MPI_COMM_WORLD, whose ranks are those of `identity`;
// DeviceError where they are not, or MPI was not built in. Where the program has not initialised MPI, it is
// for this call alone: nothing else is sent by it.
std::string broadcast_by_mpi(const ProcessIdentity& identity, std::string text);

}  // namespace pipeoptim
