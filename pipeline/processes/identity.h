// Which of several processes this one is, and where they meet: from options, or from what launchers leave in
// the environment.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "pipeline/processes/socket.h"

namespace pipeoptim {

struct ProcessIdentity {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the processes of this machine
};

// Options that are given win over the environment: RANK and WORLD_SIZE (torchrun), OMPI_COMM_WORLD_* (Open
// MPI), PMI_* (MPICH and others), SLURM_* of a job step. Throws std::invalid_argument, naming the variable,
// for what is no rank.
ProcessIdentity find_identity(std::optional<int> rank, std::optional<int> size);

// Rank 0 listens at an address; or it listens anywhere and writes the address to a file that all can read, or
// sends it by MPI.
struct MeetingPlace {
  Address address;
  std::string file;
  bool by_mpi = false;
};
std::string to_string(const MeetingPlace& place);

// "tcp:HOST:PORT", "file:PATH" or "mpi"; empty: MASTER_ADDR and MASTER_PORT, else MPI where its launcher has
// started the process and it is built in. Throws std::invalid_argument.
MeetingPlace find_meeting_place(const std::string& option);

}  // namespace pipeoptim
