#include "pipeline/processes/identity.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "pipeline/processes/mpi_meeting.h"

namespace pipeoptim {
namespace {

struct Launcher {
  const char *rank, *size, *local_rank;
};

constexpr Launcher kOpenMpi = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"};
constexpr Launcher kPmi = {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"};

// Slurm's number of tasks is that of the step, which srun alone sets: SLURM_NTASKS is there in a batch
// script, too, where one process runs.
constexpr Launcher kLaunchers[] = {{"RANK", "WORLD_SIZE", "LOCAL_RANK"},
                                   kOpenMpi,
                                   kPmi,
                                   {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};

int parse_number(const std::string& what, const std::string& text, int smallest, int largest) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < smallest || value > largest) {
    throw std::invalid_argument(what + " is '" + text + "'; it must be a number from " +
                                std::to_string(smallest) + " to " + std::to_string(largest));
  }
  return value;
}

std::optional<int> from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  return parse_number(name, text, 0, 1'000'000);
}

}  // namespace

ProcessIdentity find_identity(std::optional<int> rank, std::optional<int> size) {
  std::optional<int> local;
  for (const Launcher& launcher : kLaunchers) {
    const std::optional<int> found = from_environment(launcher.rank);
    const std::optional<int> all = from_environment(launcher.size);
    if (!found || !all) continue;
    if (!rank) rank = found;
    if (!size) size = all;
    if (rank == found) local = from_environment(launcher.local_rank);
    break;
  }
  if (!rank && !size) return {};
  if (!rank && size == 1) rank = 0;
  if (!rank || !size) {
    throw std::invalid_argument(std::string(rank ? "--rank" : "--world-size") + " is given, but no " +
                                (rank ? "--world-size" : "--rank"));
  }
  if (*size < 1 || *rank < 0 || *rank >= *size) {
    throw std::invalid_argument("rank " + std::to_string(*rank) + " of " + std::to_string(*size) +
                                " processes: ranks count from 0 to one below their number");
  }
  return {*rank, *size, local.value_or(*rank)};
}

std::string to_string(const MeetingPlace& place) {
  if (place.by_mpi) return "an address sent by MPI";
  return place.file.empty() ? to_string(place.address) : "file " + place.file;
}

MeetingPlace find_meeting_place(const std::string& option) {
  constexpr int kLargestPort = 65535;
  MeetingPlace place;
  if (option.empty()) {
    const char* host = std::getenv("MASTER_ADDR");
    const char* port = std::getenv("MASTER_PORT");
    if (host == nullptr || port == nullptr) {
      place.by_mpi =
          built_with_mpi() && (std::getenv(kOpenMpi.rank) != nullptr || std::getenv(kPmi.rank) != nullptr);
      if (place.by_mpi) return place;
      throw std::invalid_argument(
          "several processes need a place to meet: --rendezvous tcp:HOST:PORT (of rank 0), file:PATH or mpi, "
          "or the variables MASTER_ADDR and MASTER_PORT");
    }
    // torchrun's agent may listen at this port itself and says so.
    const char* store = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
    const int taken = store != nullptr && std::strcmp(store, "True") == 0 ? 1 : 0;
    const int given = parse_number("MASTER_PORT", port, 1, kLargestPort - taken);
    place.address = {host, static_cast<std::uint16_t>(given + taken)};
    return place;
  }
  if (option == "mpi") {
    if (!built_with_mpi()) {
      throw std::invalid_argument("--rendezvous mpi: this program was built without MPI (PIPEOPTIM_MPI)");
    }
    place.by_mpi = true;
    return place;
  }
  if (option.rfind("file:", 0) == 0 && option.size() > 5) {
    place.file = option.substr(5);
    return place;
  }
  const std::size_t colon = option.rfind(':');
  if (option.rfind("tcp:", 0) != 0 || colon <= 4) {
    throw std::invalid_argument("--rendezvous is '" + option +
                                "'; it must be tcp:HOST:PORT, file:PATH or mpi");
  }
  const std::string port = option.substr(colon + 1);
  place.address = {option.substr(4, colon - 4), static_cast<std::uint16_t>(parse_number(
                                                    "the port of --rendezvous", port, 1, kLargestPort))};
  return place;
}

}  // namespace pipeoptim
