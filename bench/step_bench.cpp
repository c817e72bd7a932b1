// What does a pipeline of two stages gain over one stage that has all threads? Passes of both take turns. The
// rate of a pass includes filling and emptying the pipeline, as each epoch does once.
#include <string>

#include "bench/support.h"
#include "layers/softmax_cross_entropy.h"
#include "models/init.h"
#include "models/partition.h"
#include "models/zoo.h"
#include "pipeline/engine.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

constexpr std::int64_t kRecords = 128;  // in a mini-batch

struct Case {
  const char* model;
  Shape image;
  const char* rule;
  std::int64_t minibatches;  // in a pass
};

// The same random mini-batch again and again.
class SyntheticBatch final : public BatchSource {
 public:
  explicit SyntheticBatch(const Shape& input)
      : inputs_(random_buffer(input.elements(), 1, MemoryKind::kPinned)) {
    for (std::int64_t i = 0; i < input[0]; ++i) labels_.push_back(static_cast<std::int32_t>(i % 10));
  }
  Batch acquire(std::int64_t) override { return {inputs_.data(), labels_.data()}; }
  void release(std::int64_t) override {}

 private:
  Buffer<float> inputs_;
  std::vector<std::int32_t> labels_;
};

std::unique_ptr<Engine> make_engine(const Case& c, const Shape& input, const char* method, int stages) {
  const ModelOptions options{.image = c.image, .hidden = {1024, 1024}};
  std::vector<NamedLayer> layers = make_model(c.model, options);
  const Cuts cuts = balanced_cuts(layer_costs(layers, input), stages);
  EngineConfig config;
  config.device = device();
  config.threads = threads();
  config.method = method;
  config.optimizer.rule = c.rule;
  auto engine = std::make_unique<Engine>(config, split_layers(std::move(layers), cuts),
                                         std::make_unique<SoftmaxCrossEntropy>(), input);
  std::uint64_t n = 0;
  for (const ModelTensor& tensor : engine->tensors()) {
    if (!tensor.trained) continue;
    engine->write_tensor(tensor.name, initial_values(tensor.initializer, tensor.shape, 0, n++));
  }
  return engine;
}

void step(benchmark::State& state, const Case& c) {
  const Shape input{kRecords, c.image[0], c.image[1], c.image[2]};
  const auto sequential = make_engine(c, input, "sequential", 1);
  const auto pipelined = make_engine(c, input, "pipeoptim", 2);
  SyntheticBatch data(input);
  TrainPass pass;
  pass.minibatches = c.minibatches;
  pass.learning_rate = [](std::int64_t) { return 1e-4F; };
  for (Engine* engine : {sequential.get(), pipelined.get()}) engine->train(data, pass);  // warm-up
  Samples sequential_seconds, pipelined_seconds, speedup;
  for ([[maybe_unused]] auto _ : state) {
    const double one = sequential->train(data, pass).seconds;
    const double two = pipelined->train(data, pass).seconds;
    sequential_seconds.add(one);
    pipelined_seconds.add(two);
    speedup.add(one / two);
    state.SetIterationTime(two);
  }
  const auto records = static_cast<double>(kRecords * c.minibatches);
  state.counters["sequential/s"] = records / sequential_seconds.median();
  state.counters["pipelined/s"] = records / pipelined_seconds.median();
  state.counters["speedup"] = speedup.median();
  state.SetLabel("samples/s, " + std::to_string(c.minibatches) + " mini-batches a pass, " + c.rule);
}

BENCHMARK_CAPTURE(step, mlp, Case{"mlp", {28, 28, 1}, "adamw", 48})
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, cnn, Case{"cnn", {28, 28, 1}, "adamw", 24})
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, resnet20, Case{"resnet20", {32, 32, 3}, "sgdm", 8})
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
