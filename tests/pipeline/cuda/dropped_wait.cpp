// Keeps the checkers honest: `dropped_wait N` trains a few steps on CUDA without the N-th wait for an event,
// as if the engine had forgotten it (0: none forgotten); `dropped_wait N processes` does so in the second of
// four processes with a stage each. A checker of stream order, such as a simulated device, has to complain.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

#include "pipeline/processes/process_group.h"
#include "tests/support/small_mlp.h"

namespace {

long waits = 0, dropped = 0;

}  // namespace

// Takes the place of the runtime's function for the whole program.
extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  using Function = cudaError_t (*)(cudaStream_t, cudaEvent_t, unsigned);
  static const auto function = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "cudaStreamWaitEvent"));
  return ++waits == dropped ? cudaSuccess : function(stream, event, flags);
}

namespace {

using namespace pipeoptim;

constexpr int kSteps = 8, kStages = 4;

void train(ProcessGroup* processes) {
  const test::SmallMlp mlp;
  test::RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  EngineConfig config;
  config.device = Device::cuda(0);
  config.processes = processes;
  const auto engine = mlp.engine(kStages, config);
  test::train_losses(*engine, batches, kSteps, 0.01F);
}

// As one of kStages processes; returns the exit code.
int train_as(int rank, const std::string& meeting_file) {
  if (rank != 1) dropped = 0;
  try {
    ProcessGroupOptions options;
    options.identity = {rank, kStages, rank};
    options.place.file = meeting_file;
    ProcessGroup group(options);
    train(&group);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dropped_wait, rank %d: %s\n", rank, error.what());
    return 1;
  }
}

// The children begin before anything here has touched a device.
int train_in_processes() {
  const std::string file = "/tmp/pipeoptim-dropped-wait-" + std::to_string(getpid());
  for (int rank = 0; rank < kStages; ++rank) {
    if (fork() == 0) std::exit(train_as(rank, file));
  }
  int worst = 0, status = 0;
  while (wait(&status) > 0) worst = std::max(worst, WIFEXITED(status) ? WEXITSTATUS(status) : 1);
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: dropped_wait N [processes]\n");
    return 2;
  }
  dropped = std::strtol(argv[1], nullptr, 10);
  if (argc > 2) return train_in_processes();
  if (device_count(Backend::kCuda) == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  try {
    train(nullptr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dropped_wait: %s\n", error.what());
    return 1;
  }
  std::printf("%ld waits, of which number %ld was left out\n", waits, dropped);
  return 0;
}
