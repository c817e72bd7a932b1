// Pipelines whose compute instructions are CUDA graphs: the bits of those that launch kernel by kernel, and
// in the steady state one launch an instruction.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/error.h"
#include "layers/dropout.h"
#include "optim/lr_schedule.h"
#include "tests/support/small_mlp.h"

namespace {

std::atomic<int> graph_launches = 0, kernel_launches = 0;

template <typename Function>
Function* runtime_function(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// These take the places of the runtime's functions for the whole program. The libraries' own kernels are not
// seen, but those are launched beside ours or not at all.
extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  static const auto function = runtime_function(&cudaGraphLaunch, "cudaGraphLaunch");
  ++graph_launches;
  return function(graph, stream);
}

extern "C" cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                           void** arguments) {
  static const auto function = runtime_function(&cudaLaunchKernelExC, "cudaLaunchKernelExC");
  ++kernel_launches;
  return function(config, kernel, arguments);
}

namespace pipeoptim::test {
namespace {

constexpr int kDepth = 4;
constexpr int kSteps = 40;  // more than twice what is posted and not yet taken at most

struct Case {
  std::string method, rule;
  Predictor predictor = Predictor::kLinear;
  int microbatches = 1;
  MatrixPrecision precision = MatrixPrecision::kFp32;
};

bool writes_weights(Op op) { return is_update(op) || op == Op::kPredict || op == Op::kStashWeights; }

class CudaGraphs : public testing::TestWithParam<Case> {
 protected:
  enum class Graphs { kNo, kYes };

  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
  }

  EngineConfig config(Graphs graphs) const {
    EngineConfig config;
    config.device = Device::cuda(0);
    config.method = GetParam().method;
    const int workers = config.method == "interleaved" ? kDepth / 2 : kDepth;
    config.devices = std::min(workers, device_count(Backend::kCuda));
    config.optimizer.rule = GetParam().rule;
    config.optimizer.predictor = GetParam().predictor;
    config.optimizer.weight_decay = 0.01;
    config.microbatches_per_update = GetParam().microbatches;
    config.precision = GetParam().precision;
    config.cuda_graph = graphs == Graphs::kYes;
    return config;
  }
  std::unique_ptr<Engine> engine(Graphs graphs) const { return mlp_.engine(kDepth, config(graphs)); }

  RandomBatches batches(int count = 2 * kSteps) const {
    return RandomBatches(count, mlp_.records, mlp_.widths.front(), mlp_.widths.back());
  }

  // Another learning rate at each step.
  std::vector<double> train(Engine& engine, RandomBatches& source, std::int64_t first_step) const {
    const LrSchedule rates(
        {.kind = "cosine", .base_lr = base_lr_, .warmup_steps = kSteps / 2, .total_steps = 2 * kSteps});
    std::vector<double> losses;
    TrainPass pass;
    pass.first_step = first_step;
    pass.minibatches = kSteps;
    pass.anneal_steps = kSteps;
    pass.learning_rate = [&](std::int64_t step) { return rates.at(step); };
    pass.on_step = [&](const StepResult& step) {
      losses.push_back(step.loss);
      losses.push_back(static_cast<double>(step.correct));
      return true;
    };
    source.first = first_step;
    engine.train(source, pass);
    return losses;
  }

  struct Run {
    std::vector<double> losses;
    std::vector<float> weights;
    std::vector<OptimizerStatus> status;
  };
  // Two passes with an evaluation between.
  Run run(Graphs graphs) const { return run(*engine(graphs), batches()); }
  Run run(Engine& engine, RandomBatches source) const {
    Run run;
    run.losses = train(engine, source, 0);
    run.losses.push_back(engine.evaluate(source, 7).loss);
    for (const double loss : train(engine, source, kSteps)) run.losses.push_back(loss);
    run.weights = all_weights(engine);
    run.status = engine.optimizer_status();
    return run;
  }

  static void expect_same(const Run& graphs, const Run& plain) {
    EXPECT_EQ(graphs.losses, plain.losses);
    EXPECT_EQ(graphs.weights, plain.weights);
    ASSERT_EQ(graphs.status.size(), plain.status.size());
    for (std::size_t k = 0; k < plain.status.size(); ++k) {
      EXPECT_EQ(graphs.status[k].steps, plain.status[k].steps) << k;
      EXPECT_EQ(graphs.status[k].skipped, plain.status[k].skipped) << k;
      EXPECT_EQ(graphs.status[k].last_bad_range, plain.status[k].last_bad_range) << k;
      EXPECT_EQ(graphs.status[k].gradient_norm, plain.status[k].gradient_norm) << k;
    }
  }

  SmallMlp mlp_;
  double base_lr_ = 0.01;
};

TEST_P(CudaGraphs, ChangeNoBit) { expect_same(run(Graphs::kYes), run(Graphs::kNo)); }

TEST_P(CudaGraphs, AreOneLaunchAnInstruction) {
  const auto engine = this->engine(Graphs::kYes);
  RandomBatches source = batches();
  for (int pass = 0; pass < 2; ++pass) train(*engine, source, 0);  // all instructions twice
  EXPECT_GT(kernel_launches, 0) << "launches are not counted";
  graph_launches = kernel_launches = 0;
  train(*engine, source, kSteps);
  std::int64_t instructions = 0;
  for (const Program& program : engine->last_schedule().stages) {
    instructions += std::count_if(program.begin(), program.end(), [](const Instruction& instruction) {
      return is_compute(instruction.op) || writes_weights(instruction.op);
    });
  }
  EXPECT_EQ(graph_launches, instructions);
  EXPECT_EQ(kernel_launches, 0);
}

std::string case_name(const testing::TestParamInfo<Case>& tested) {
  const char* const predictors[] = {"linear", "schedule_aware", "geometric", "difference", "none"};
  const Case& given = tested.param;
  std::string name = given.method + "_" + given.rule + "_" + predictors[static_cast<int>(given.predictor)] +
                     "_m" + std::to_string(given.microbatches) +
                     (given.precision == MatrixPrecision::kBf16 ? "_bf16" : "");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, CudaGraphs,
    testing::Values(Case{"pipeoptim", "sgdm"}, Case{"pipeoptim", "adamw", Predictor::kScheduleAware},
                    Case{"pipeoptim", "nadam", Predictor::kGeometric},
                    Case{"pipeoptim", "adan", Predictor::kGeometric, 4},
                    Case{"pipeoptim", "adan", Predictor::kDifference}, Case{"pipeoptim", "muon"},
                    Case{"pipeoptim", "muon", Predictor::kDifference, 4},
                    Case{"pipeoptim", "adamw", Predictor::kLinear, 1, MatrixPrecision::kBf16},
                    Case{"pipedream", "adamw"}, Case{"pipedream-2bw", "sgdm", Predictor::kLinear, 4},
                    Case{"spectrain", "sgdm"}, Case{"pipemare", "adamw"},
                    Case{"gpipe", "adamw", Predictor::kLinear, 4},
                    Case{"1f1b", "nadam", Predictor::kLinear, 4},
                    Case{"zb-h1", "adamw", Predictor::kLinear, 4},
                    Case{"interleaved", "adamw", Predictor::kLinear, 4}),
    case_name);

using CudaGraphsOfPipeOptim = CudaGraphs;
INSTANTIATE_TEST_SUITE_P(Case, CudaGraphsOfPipeOptim, testing::Values(Case{"pipeoptim", "adamw"}), case_name);

// The first layer's gradient overflows with one record, while the loss stays finite.
TEST_P(CudaGraphsOfPipeOptim, SkipStepsAlike) {
  base_lr_ = 1e-8;  // the first layer's weights stay as small as they are made here
  const auto train_with_skip = [&](Graphs graphs) {
    const auto engine = this->engine(graphs);
    const auto scale = [&](const std::string& name, float factor) {
      std::vector<float> values = engine->read_tensor(name);
      for (float& value : values) value *= factor;
      engine->write_tensor(name, values);
    };
    scale("0.weight", 1e-6F);
    scale("14.weight", 1e4F);
    RandomBatches source = batches();
    source.inputs(kSteps + 5)[0] = 3e38F;
    return run(*engine, source);
  };
  const Run graphs = train_with_skip(Graphs::kYes);
  EXPECT_EQ(graphs.status.front().skipped, 1);
  expect_same(graphs, train_with_skip(Graphs::kNo));
}

// A stage that draws random numbers launches its layers one by one, the loss with them, and only those.
TEST_P(CudaGraphsOfPipeOptim, HoldTheUpdatesOfStagesWithDropout) {
  const auto run_with_dropout = [&](Graphs graphs) {
    auto stages = mlp_.stages(kDepth);
    stages.back().insert(stages.back().begin(), NamedLayer{"dropout", std::make_unique<Dropout>(0.2)});
    Engine engine(config(graphs), std::move(stages), std::make_unique<SoftmaxCrossEntropy>(),
                  Shape{mlp_.records, mlp_.widths.front()});
    const auto from = mlp_.engine(1, {});
    for (const ModelTensor& tensor : engine.tensors()) {
      engine.write_tensor(tensor.name, from->read_tensor(tensor.name));
    }
    Run run = this->run(engine, batches());
    graph_launches = 0;
    RandomBatches source = batches();
    for (const double loss : train(engine, source, kSteps)) run.losses.push_back(loss);
    std::int64_t expected = 0;
    for (const Program& program : engine.last_schedule().stages) {
      const bool repeats = &program != &engine.last_schedule().stages.back();
      expected += std::count_if(program.begin(), program.end(), [&](const Instruction& instruction) {
        return (is_compute(instruction.op) && repeats) || writes_weights(instruction.op);
      });
    }
    EXPECT_EQ(graph_launches, graphs == Graphs::kYes ? expected : 0);
    return run;
  };
  expect_same(run_with_dropout(Graphs::kYes), run_with_dropout(Graphs::kNo));
}

using CudaGraphsWithoutPrediction = CudaGraphs;
INSTANTIATE_TEST_SUITE_P(Case, CudaGraphsWithoutPrediction,
                         testing::Values(Case{"pipeoptim", "sgd", Predictor::kNone}), case_name);

// A pass that ends early, by request or by an error, leaves nothing behind for the next. How far it came is a
// matter of time: at a rate of 0 that changes nothing.
TEST_P(CudaGraphsWithoutPrediction, GoOnAfterPassesThatEndEarly) {
  const auto run_on = [&](Graphs graphs) {
    const auto engine = this->engine(graphs);
    RandomBatches source = batches(), long_source = batches(10 * kSteps), broken = batches();
    broken.inputs(5)[3] = std::nanf("");
    Run run;
    run.losses = train(*engine, source, 0);
    TrainPass pass;
    pass.learning_rate = [](std::int64_t) { return 0.0F; };
    pass.minibatches = 10 * kSteps;
    pass.on_step = [](const StepResult& step) { return step.step < 9; };
    EXPECT_TRUE(engine->train(long_source, pass).stopped);
    pass.minibatches = kSteps;
    pass.on_step = {};
    EXPECT_THROW(engine->train(broken, pass), DataError);
    for (const double loss : train(*engine, source, kSteps)) run.losses.push_back(loss);
    run.weights = all_weights(*engine);
    return run;
  };
  expect_same(run_on(Graphs::kYes), run_on(Graphs::kNo));
}

}  // namespace
}  // namespace pipeoptim::test
