// What a build without MPI answers.
#include "kernels/runtime/error.h"
#include "pipeline/processes/mpi_meeting.h"

namespace pipeoptim {

bool built_with_mpi() { return false; }

MpiSession::MpiSession() = default;
MpiSession::~MpiSession() = default;

std::string broadcast_by_mpi(const ProcessIdentity&, std::string) {
  throw DeviceError("rendezvous by MPI", "this program was built without it");
}

}  // namespace pipeoptim
