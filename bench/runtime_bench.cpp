// What do the runtime and the engine cost on the host where there is nothing to compute? The counter is the
// time of one operation, in seconds.
#include "bench/empty_launch.h"
#include "bench/no_work.h"
#include "bench/support.h"
#include "pipeline/engine.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

constexpr int kBatch = 256;  // operations between two synchronizations; a stream's queue holds more

void report(benchmark::State& state, const char* operation, double operations) {
  using benchmark::Counter;
  state.counters["each"] = Counter(operations, Counter::kIsIterationInvariantRate | Counter::kInvert);
  state.SetLabel(operation);
}

void submit(benchmark::State& state) {
  Stream stream(device());
  for ([[maybe_unused]] auto _ : state) {
    for (int i = 0; i < kBatch; ++i) stream.submit([] {});
    stream.synchronize();
  }
  report(state, "task submitted and run", kBatch);
}

void submit_and_synchronize(benchmark::State& state) {
  Stream stream(device());
  for ([[maybe_unused]] auto _ : state) {
    stream.submit([] {});
    stream.synchronize();
  }
  report(state, "task submitted and waited for", 1);
}

void launch(benchmark::State& state) {
  Stream stream(device(), {.threads = threads()});
  for ([[maybe_unused]] auto _ : state) {
    for (int i = 0; i < kBatch; ++i) launch_nothing(stream);
    stream.synchronize();
  }
  report(state, "launch", kBatch);
}

void record_and_wait(benchmark::State& state) {
  Stream stream(device());
  Event event(device());
  for ([[maybe_unused]] auto _ : state) {
    for (int i = 0; i < kBatch / 2; ++i) {
      stream.record(event);
      stream.wait(event);
    }
    stream.synchronize();
  }
  report(state, "event recorded and waited for", kBatch / 2);
}

// Work goes from stream A to stream B and back to A.
void hop(benchmark::State& state) {
  Stream a(device()), b(device());
  Event there(device()), back(device());
  constexpr int kHops = 64;
  for ([[maybe_unused]] auto _ : state) {
    for (int i = 0; i < kHops; ++i) {
      a.submit([] {});
      a.record(there);
      b.wait(there);
      b.submit([] {});
      b.record(back);
      a.wait(back);
    }
    a.synchronize();
  }
  report(state, "from stream A to B and back", kHops);
}

class NoData final : public BatchSource {
 public:
  Batch acquire(std::int64_t) override { return {inputs_, labels_}; }
  void release(std::int64_t) override {}

 private:
  float inputs_[1] = {};
  std::int32_t labels_[1] = {};
};

void engine(benchmark::State& state, const char* method) {
  EngineConfig config;
  config.device = device();
  config.threads = threads();
  config.method = method;
  Engine engine(config, empty_stages(static_cast<int>(state.range(0))), std::make_unique<NoLoss>(), {1, 1});
  NoData data;
  TrainPass pass;
  pass.minibatches = 500;
  pass.learning_rate = [](std::int64_t) { return 0.0F; };
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(engine.train(data, pass).seconds);
  std::size_t instructions = 0;
  for (const Program& program : engine.last_schedule().stages) instructions += program.size();
  report(state, "instruction", static_cast<double>(instructions));
}

BENCHMARK(submit)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(submit_and_synchronize)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(launch)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(record_and_wait)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(hop)->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(engine, pipeoptim, "pipeoptim")
    ->ArgName("stages")
    ->Arg(2)
    ->Arg(4)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
