// Keeps the checkers honest: `dropped_wait N` trains a few steps on CUDA without the N-th wait for an event,
// as if the engine had forgotten it (0: none forgotten). A checker of stream order, such as a simulated
// device, has to complain.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

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

int main(int argc, char** argv) {
  using namespace pipeoptim;
  if (argc != 2) {
    std::fprintf(stderr, "usage: dropped_wait N\n");
    return 2;
  }
  dropped = std::strtol(argv[1], nullptr, 10);
  if (device_count(Backend::kCuda) == 0) {
    std::printf("no CUDA device\n");
    return 77;
  }
  try {
    constexpr int kSteps = 8;
    const test::SmallMlp mlp;
    test::RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
    EngineConfig config;
    config.device = Device::cuda(0);
    const auto engine = mlp.engine(4, config);
    test::train_losses(*engine, batches, kSteps, 0.01F);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dropped_wait: %s\n", error.what());
    return 1;
  }
  std::printf("%ld waits, of which number %ld was left out\n", waits, dropped);
  return 0;
}
