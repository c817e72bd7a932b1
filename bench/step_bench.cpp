// What does a pipeline of two stages gain over one stage that has all threads? Passes of both take turns. The
// rate of a pass includes filling and emptying the pipeline, as each epoch does once.
// PIPEOPTIM_BENCH_CUDA_GRAPH=1: with CUDA graphs.
#include <string>

#include "bench/choices.h"
#include "bench/support.h"
#include "bench/training.h"
#include "layers/softmax_cross_entropy.h"
#include "models/init.h"
#include "models/partition.h"
#include "pipeline/engine.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

std::unique_ptr<Engine> make_engine(const Case& c, const Shape& input, const char* method, int stages) {
  std::vector<NamedLayer> layers = make_model(c.model, c.options);
  const Cuts cuts = balanced_cuts(layer_costs(layers, input), stages);
  EngineConfig config;
  config.device = device();
  config.threads = threads();
  config.method = method;
  config.precision = precision();
  config.row_kernels = row_kernels();
  config.optimizer.rule = c.rule;
  const char* const graph = std::getenv("PIPEOPTIM_BENCH_CUDA_GRAPH");
  config.cuda_graph = graph != nullptr && std::string(graph) == "1";
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
  const Shape input = model_input(c.model, c.options, c.records);
  const auto sequential = make_engine(c, input, "sequential", 1);
  const auto pipelined = make_engine(c, input, "pipeoptim", 2);
  SyntheticBatch data(c, input);
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
  const auto records = static_cast<double>(c.records * c.minibatches);
  state.counters["sequential/s"] = records / sequential_seconds.median();
  state.counters["pipelined/s"] = records / pipelined_seconds.median();
  state.counters["speedup"] = speedup.median();
  const auto minibatches = static_cast<double>(c.minibatches);
  state.counters["sequential_s"] = sequential_seconds.median() / minibatches;
  state.counters["pipelined_s"] = pipelined_seconds.median() / minibatches;
  state.SetLabel("samples/s, " + std::to_string(c.minibatches) + " mini-batches a pass, " + c.rule);
}

PIPEOPTIM_TRAINING(step, mlp, mlp(48));
PIPEOPTIM_TRAINING(step, cnn, Case{"cnn", {}, 128, "adamw", 24});
PIPEOPTIM_TRAINING(step, resnet20, resnet20(8));
PIPEOPTIM_TRAINING(step, vgg16, Case{"vgg16", {.image = {32, 32, 3}}, 128, "sgdm", 4});
PIPEOPTIM_TRAINING(step, gpt, gpt(16));
PIPEOPTIM_TRAINING(
    step, lstm,
    Case{
        "lstm", {.classes = 2, .features = 512, .sequence_length = 64, .vocabulary = 20000}, 32, "adamw", 8});

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
