// How near does a pipeline of two stages, a core each, come to the speed of its slower stage alone? All take
// turns: the steady state of the pipeline; each stage alone, which runs its own program without the transfers
// and without waiting for anybody; and both stages at once, still without waiting for each other, which share
// what two cores share: memory and clock. own% is the slower stage's time alone over the pipeline's, of a
// mini-batch; busy% is the same with the other core at work.
#include <algorithm>
#include <cmath>
#include <string>
#include <thread>

#include "bench/choices.h"
#include "bench/support.h"
#include "bench/training.h"
#include "layers/softmax_cross_entropy.h"
#include "models/init.h"
#include "models/partition.h"
#include "pipeline/engine_core.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

constexpr int kStages = 2;
constexpr std::int64_t kFill =
    4;  // mini-batches of a pass of which most is filling and emptying the pipeline

class TwoStages {
 public:
  explicit TwoStages(const Case& c)
      : case_(c), input_(model_input(c.model, c.options, c.records)), data_(c, input_), core_(make_core()) {
    core_.allocate();
    std::uint64_t n = 0;
    for (const Stage& stage : core_.stages) {
      for (const PlacedTensor& placed : stage.parameters()) {
        const ModelTensor& tensor = placed.tensor;
        const std::vector<float> values = initial_values(tensor.initializer, tensor.shape, 0, n++);
        copy_from_host(stage.weights() + placed.offset, values.data(), values.size() * sizeof(float),
                       stage.device());
      }
    }
  }

  // Seconds of a mini-batch: what a long pass takes longer than a short one.
  double pipeline() {
    const double filling = pass(kFill);
    return (pass(kFill + case_.minibatches) - filling) / static_cast<double>(case_.minibatches);
  }

  // The same of stage `k`, which goes through its program of the last pass, over and over.
  double alone(int k, std::int64_t minibatches) {
    const Program& program = core_.schedule.stages[static_cast<std::size_t>(k)];
    const double time = seconds(compute(k), [&] {
      std::int64_t updates = 0;
      for (std::size_t i = 0; updates < minibatches; ++i) {
        const Instruction& instruction = program[i % program.size()];
        run(k, instruction);
        if (is_update(instruction.op)) ++updates;
      }
    });
    return time / static_cast<double>(minibatches);
  }

 private:
  EngineCore make_core() const {
    std::vector<NamedLayer> layers = make_model(case_.model, case_.options);
    const Cuts cuts = balanced_cuts(layer_costs(layers, input_), kStages);
    EngineConfig config;
    config.device = device();
    config.threads = kStages;
    config.precision = precision();
    config.row_kernels = row_kernels();
    config.optimizer.rule = case_.rule;
    return {config, split_layers(std::move(layers), cuts), std::make_unique<SoftmaxCrossEntropy>(), input_};
  }

  double pass(std::int64_t minibatches) {
    TrainPass pass;
    pass.minibatches = minibatches;
    pass.learning_rate = [](std::int64_t) { return kRate; };
    core_.use_schedule(minibatches);
    core_.use_rates(pass);
    return run_pass(core_, data_, core_.schedule, Mode::kTraining, pass).seconds;
  }

  Stream& compute(int k) const { return core_.lanes[static_cast<std::size_t>(k)]->streams[kCompute]; }

  // As the engine does, on what the last pass has left in the slots.
  void run(int k, const Instruction& instruction) {
    Stream& stream = compute(k);
    Stage& stage = core_.stages[static_cast<std::size_t>(k)];
    const Stage::Pass pass{.slot = instruction.slot,
                           .source = instruction.source,
                           .version_slot = instruction.version_slot,
                           .predicted_slot = instruction.predicted_slot,
                           .wants_input_gradient = k > 0};
    switch (instruction.op) {
      case Op::kForward:
        return stage.forward(stream, pass);
      case Op::kBackward:
        if (k + 1 == core_.depth()) run_loss(instruction.slot);
        return stage.backward(stream, pass, Stage::Part::kBoth);
      case Op::kUpdate:
        return stage.update(stream, kRate);
      case Op::kUpdatePredict:
        return stage.update_predict(stream, kRate, instruction.predicted_slot, LearningRates(kRates));
      case Op::kPredict:
        return stage.predict(stream, instruction.predicted_slot, LearningRates(kRates));
      default:
        return;  // a transfer
    }
  }

  void run_loss(int slot) {
    const Stage& last = core_.stages.back();
    core_.loss->run({.stream = compute(core_.depth() - 1),
                     .logits = last.output(slot),
                     .labels = core_.labels.data(),
                     .logits_gradient = last.output_gradient(slot),
                     .loss_sum = core_.loss_sums.data(),
                     .correct = core_.correct.data(),
                     .scale = 1.0F / static_cast<float>(core_.minibatch_labels()),
                     .workspace = core_.loss_workspace.data()});
  }

  static constexpr float kRate =
      1e-6F;  // the same mini-batch many times: the weights should stay what they are
  static constexpr float kRates[] = {kRate};

  Case case_;
  Shape input_;
  SyntheticBatch data_;
  EngineCore core_;
};

void own_speed(benchmark::State& state, const Case& c) {
  TwoStages stages(c);
  Samples pipeline, first, second, busy_first, busy_second, own, own_busy;
  stages.pipeline();  // warm-up
  for ([[maybe_unused]] auto _ : state) {
    const double steady = stages.pipeline();
    const double alone[] = {stages.alone(0, c.minibatches), stages.alone(1, c.minibatches)};
    const double slower = std::max(alone[0], alone[1]);
    // Both end at about the same time.
    const auto times = [&](int k) {
      return std::llround(static_cast<double>(c.minibatches) * slower / alone[k]);
    };
    double busy[2];
    std::thread other([&] { busy[1] = stages.alone(1, times(1)); });
    busy[0] = stages.alone(0, times(0));
    other.join();
    pipeline.add(steady);
    first.add(alone[0]);
    second.add(alone[1]);
    busy_first.add(busy[0]);
    busy_second.add(busy[1]);
    own.add(slower / steady);
    own_busy.add(std::max(busy[0], busy[1]) / steady);
    state.SetIterationTime(steady * static_cast<double>(c.minibatches));
  }
  state.counters["pipeline_s"] = pipeline.median();
  state.counters["first_s"] = first.median();
  state.counters["second_s"] = second.median();
  state.counters["busy_first_s"] = busy_first.median();
  state.counters["busy_second_s"] = busy_second.median();
  state.counters["own%"] = 100 * own.median();
  state.counters["busy%"] = 100 * own_busy.median();
  state.SetLabel(std::string("a mini-batch; slower stage / pipeline, ") + c.rule);
}

PIPEOPTIM_TRAINING(own_speed, mlp, mlp(64));
PIPEOPTIM_TRAINING(own_speed, resnet20, resnet20(8));
PIPEOPTIM_TRAINING(own_speed, gpt, gpt(8));

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
