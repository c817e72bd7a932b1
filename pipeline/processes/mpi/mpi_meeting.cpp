#include "pipeline/processes/mpi_meeting.h"

#include <mpi.h>

#include <cstdint>

#include "kernels/runtime/error.h"

namespace pipeoptim {
namespace {

// MPI as the program has it, or for as long as this lives.
class MpiSession {
 public:
  MpiSession() {
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (finalized != 0) throw DeviceError("rendezvous by MPI", "the program has ended MPI already");
    if (initialized == 0) MPI_Init(nullptr, nullptr);
    ours_ = initialized == 0;
  }
  ~MpiSession() {
    if (ours_) MPI_Finalize();
  }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

 private:
  bool ours_ = false;
};

void require_ranks(const ProcessIdentity& identity) {
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank == identity.rank && size == identity.size) return;
  throw DeviceError("rendezvous by MPI", "this is rank " + std::to_string(rank) + " of " +
                                             std::to_string(size) + " for MPI, and rank " +
                                             std::to_string(identity.rank) + " of " +
                                             std::to_string(identity.size) + " by options and environment");
}

}  // namespace

bool built_with_mpi() { return true; }

// MPI's own errors end the program, with a message, as by default.
std::string broadcast_by_mpi(const ProcessIdentity& identity, std::string text) {
  const MpiSession session;
  require_ranks(identity);
  auto length = static_cast<std::int32_t>(text.size());
  MPI_Bcast(&length, 1, MPI_INT32_T, 0, MPI_COMM_WORLD);
  text.resize(static_cast<std::size_t>(length));
  MPI_Bcast(text.data(), length, MPI_CHAR, 0, MPI_COMM_WORLD);
  return text;
}

}  // namespace pipeoptim
