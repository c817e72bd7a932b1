#include "pipeline/processes/mpi_meeting.h"

#include <mpi.h>

#include <cstdint>

#include "kernels/runtime/error.h"

namespace pipeoptim {
namespace {

bool running() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

// All ranks learn of a wrong one, so that none waits for it.
void require_ranks(const ProcessIdentity& identity) {
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const bool right = rank == identity.rank && size == identity.size;
  int mine = right ? 1 : 0, all = 0;
  MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
  if (!right) {
    throw DeviceError("rendezvous by MPI", "this is rank " + std::to_string(rank) + " of " +
                                               std::to_string(size) + " for MPI, and rank " +
                                               std::to_string(identity.rank) + " of " +
                                               std::to_string(identity.size) + " by options and environment");
  }
  if (all == 0) throw DeviceError("rendezvous by MPI", "another process has another rank for MPI");
}

}  // namespace

MpiSession::MpiSession() : ours_(!running()) {
  if (ours_) MPI_Init(nullptr, nullptr);
}
MpiSession::~MpiSession() {
  if (ours_) MPI_Finalize();
}

bool built_with_mpi() { return true; }

// MPI's own errors end the program, with a message, as by default.
std::string broadcast_by_mpi(const ProcessIdentity& identity, std::string text) {
  if (!running()) throw DeviceError("rendezvous by MPI", "the program has not initialised MPI");
  require_ranks(identity);
  auto length = static_cast<std::int32_t>(text.size());
  MPI_Bcast(&length, 1, MPI_INT32_T, 0, MPI_COMM_WORLD);
  text.resize(static_cast<std::size_t>(length));
  MPI_Bcast(text.data(), length, MPI_CHAR, 0, MPI_COMM_WORLD);
  return text;
}

}  // namespace pipeoptim
