// The engine against the explicit simulation of weight versions, and the oracles O1 to O10 of
// docs/methods.md.
#include "pipeline/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/error.h"
#include "layers/linear.h"
#include "layers/softmax_cross_entropy.h"
#include "pipeline/methods.h"
#include "tests/support/bf16.h"
#include "tests/support/small_mlp.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

constexpr int kSteps = 24;

EngineConfig config_for(const std::string& method, const std::string& rule = "sgdm", int micro = 1) {
  EngineConfig config;
  config.method = method;
  config.optimizer.rule = rule;
  config.microbatches_per_update = micro;
  config.threads = 1;
  return config;
}

int micro_for(const std::string& method) {
  if (method == "pipedream-2bw") return 8;
  if (method == "xpipe") return 2;
  return is_asynchronous(find_method(method).order) || method == "sequential" ? 1 : 4;
}

// Divides `depth` stages among workers, two on each where the method wants that and the number allows it.
// False: the method cannot.
bool divide(EngineConfig& config, int depth) {
  const ChunkRange& chunks = find_method(config.method).chunks;
  if (depth % chunks.normal != 0) config.chunks = 1;
  if (config.chunks == 1 && chunks.least > 1) return false;
  return config.method != "delayed" || depth == 1;
}

float lr_for(const std::string& rule) { return rule == "sgdm" ? 0.02F : 0.003F; }

using Case = std::tuple<std::string, std::string, int>;  // method, rule, depth
class Trajectory : public testing::TestWithParam<Case> {};

HorizonPolicy horizon_of(const std::string& name) {
  if (name == "paper") return HorizonPolicy::kPaper;
  return name == "exact" ? HorizonPolicy::kExact : HorizonPolicy::kReleasedCode;
}

Predictor predictor_of(const std::string& name) {
  if (name == "geometric") return Predictor::kGeometric;
  return name == "linear" ? Predictor::kLinear : Predictor::kDifference;
}

// The float engine follows the double simulation, loss by loss.
void expect_trajectory(EngineConfig config, oracle::Settings settings, int depth) {
  SCOPED_TRACE("horizon " + settings.horizon + ", predictor " + settings.predictor);
  const SmallMlp mlp;
  const float lr = lr_for(settings.rule);
  config.optimizer.weight_decay = 0.1;
  settings.weight_decay = 0.1;
  settings.lr = static_cast<double>(lr);
  settings.microbatches = config.microbatches_per_update;
  RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto engine = mlp.engine(depth, config);
  const auto losses = train_losses(*engine, batches, kSteps, lr, nullptr, 0, settings.pipemare_anneal);
  auto simulation = mlp.simulation(depth, settings);
  ASSERT_EQ(losses.size(), static_cast<std::size_t>(kSteps));
  for (int t = 0; t < kSteps; ++t) {
    const oracle::Vector inputs(batches.inputs(t).begin(), batches.inputs(t).end());
    const std::vector<int> labels(batches.labels(t).begin(), batches.labels(t).end());
    const double expected = simulation.step(t, inputs, labels);
    ASSERT_NEAR(losses[static_cast<std::size_t>(t)], expected,
                tolerance::kTrajectory * std::max(1.0, expected))
        << "step " << t;
  }
}

TEST_P(Trajectory, EqualsSimulationOfWeightVersions) {
  const auto& [method, asked_rule, depth] = GetParam();
  const std::string own = find_method(method).rule;
  if (!own.empty() && asked_rule != "sgdm") return;  // the method's rule, once
  const std::string rule = own.empty() ? asked_rule : own;
  EngineConfig config = config_for(method, rule, micro_for(method));
  if (!divide(config, depth)) return;
  oracle::Settings settings;
  settings.method = method;
  settings.rule = rule;
  if (method == "async-nag") settings.beta1 = 0.99;
  if (method == "pipemare") settings.pipemare_anneal = 10;
  const bool predicts = method == "pipeoptim" || method == "lwp";
  for (const char* predictor : {"linear", "geometric", "difference"}) {
    for (const char* horizon : {"exact", "paper", "released-code"}) {
      if (!predicts && std::string(predictor) != "linear") continue;
      if (method != "pipeoptim" && std::string(horizon) != "exact") continue;
      config.optimizer.predictor = predictor_of(predictor);
      config.horizon = horizon_of(horizon);
      settings.predictor = predictor;
      settings.horizon = horizon;
      expect_trajectory(config, settings, depth);
    }
  }
}

// What a stage reads where several share a worker: counted from the schedule, as no closed form exists.
TEST_P(Trajectory, EqualsSimulationWithSeveralStagesOnAWorker) {
  const auto& [method, rule, depth] = GetParam();
  const Method& found = find_method(method);
  if (found.chunks.most == 1 || !is_asynchronous(found.order) || depth % 2 != 0) return;
  EngineConfig config = config_for(method, rule);
  config.chunks = 2;
  const Schedule schedule = make_schedule(method, {.workers = depth / 2, .minibatches = kSteps, .chunks = 2});
  oracle::Settings settings;
  settings.method = method;
  settings.rule = rule;
  settings.reads = [&](int k, int t, bool forward) -> oracle::Reads {
    int updates = 0, at_forward = 0;
    for (const Instruction& i : schedule.stages[static_cast<std::size_t>(k)]) {
      if (is_update(i.op)) ++updates;
      if (i.op == Op::kForward && i.microbatch == t) at_forward = updates;
      if (i.op == Op::kBackward && i.microbatch == t) break;
    }
    if (method == "pipedream") return {at_forward, 0};
    if (!forward) return {t, 0};
    return {at_forward, method == "pipeoptim" ? t - at_forward : 0};
  };
  expect_trajectory(config, settings, depth);
}

// Staleness on one stage: what an early stage of a deep pipeline sees.
TEST(Delayed, EqualsSimulationForEveryPredictor) {
  for (const int delay : {0, 1, 3, 7}) {
    for (const char* predictor : {"linear", "geometric", "difference"}) {
      for (const char* rule : {"sgdm", "adam", "adamw"}) {
        SCOPED_TRACE(std::string(rule) + ", delay " + std::to_string(delay));
        EngineConfig config = config_for("delayed", rule);
        config.delay = delay;
        config.optimizer.predictor = predictor_of(predictor);
        oracle::Settings settings;
        settings.method = "delayed";
        settings.rule = rule;
        settings.delay = delay;
        settings.predictor = predictor;
        expect_trajectory(config, settings, 1);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AllMethods, Trajectory,
                         testing::Combine(testing::ValuesIn(method_names()),
                                          testing::Values("sgdm", "adam", "adamw"),
                                          testing::Values(1, 2, 3, 4, 8)),
                         [](const testing::TestParamInfo<Case>& test) {
                           std::string name = std::get<0>(test.param) + "_" + std::get<1>(test.param) + "_D" +
                                              std::to_string(std::get<2>(test.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Empty where the method cannot have that many stages.
std::vector<float> trained(const std::string& method, const std::string& rule, int depth, int micro,
                           HostExecution execution = HostExecution::kWorker) {
  const SmallMlp mlp;
  EngineConfig config = config_for(method, rule, micro);
  config.execution = execution;
  if (!divide(config, depth)) return {};
  RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto engine = mlp.engine(depth, config);
  train_losses(*engine, batches, kSteps, lr_for(rule));
  return all_weights(*engine);
}

// O1: with one stage every method is sequential training, bit for bit (2BW's gradient is late by definition),
// with its own rule where it has one; so is zb-v with both of its stages on one worker.
TEST(Oracles, OneStageIsSequential) {
  for (const std::string& method : method_names()) {
    if (method == "pipedream-2bw") continue;
    const std::string own = find_method(method).rule;
    const std::string rule = own.empty() ? "adamw" : own;
    const int depth = method == "zb-v" ? 2 : 1;
    if (method == "async-nag") continue;  // a beta1 of its own
    EXPECT_EQ(trained(method, rule, depth, 1), trained("sequential", rule, 1, 1)) << method;
  }
}

// O2: the synchronous methods agree bit for bit, for every depth.
TEST(Oracles, SynchronousMethodsAgree) {
  for (const char* rule : {"sgdm", "muon"}) {
    const auto expected = trained("gpipe", rule, 1, 4);
    for (const Method& method : methods()) {
      if (is_asynchronous(method.order) || method.order == ComputeOrder::kSequential) continue;
      for (const int depth : {1, 2, 3, 4, 8}) {
        const auto weights = trained(method.name, rule, depth, 4);
        if (weights.empty()) continue;
        EXPECT_EQ(weights, expected) << method.name << ", " << rule << ", D = " << depth;
      }
    }
  }
}

// What is stored in bf16 does not depend on where the model is cut.
TEST(Oracles, CutsChangeNothingInBf16) {
  if (!multiplies_bf16(Device::host())) GTEST_SKIP() << "no bf16";
  const SmallMlp mlp;
  const auto losses = [&](int depth) {
    EngineConfig config = config_for("gpipe", "adamw");
    config.precision = MatrixPrecision::kBf16;
    RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
    return train_losses(*mlp.engine(depth, config), batches, kSteps, 0.01F);
  };
  const auto expected = losses(1);
  for (const int depth : {2, 3, 4, 8}) EXPECT_EQ(losses(depth), expected) << "D = " << depth;
}

// Threads and streams change nothing: the asynchronous engine equals the one that runs everything in the
// caller.
TEST(Oracles, ThreadedEqualsOneQueue) {
  for (const std::string& method : method_names()) {
    const int micro = micro_for(method);
    for (const int depth : {2, 4, 8}) {
      EXPECT_EQ(trained(method, "adamw", depth, micro),
                trained(method, "adamw", depth, micro, HostExecution::kInline))
          << method << ", D = " << depth;
    }
  }
}

// O3: with lr = 0 the prediction is the identity, so pipeoptim equals naive.
TEST(Oracles, ZeroLearningRateEqualsNaive) {
  const SmallMlp mlp;
  std::vector<std::vector<double>> losses;
  for (const char* method : {"naive", "pipeoptim"}) {
    RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
    const auto engine = mlp.engine(4, config_for(method));
    losses.push_back(train_losses(*engine, batches, kSteps, 0.0F));
  }
  EXPECT_EQ(losses[0], losses[1]);
}

std::vector<VersionRecord> trace_of(const std::string& method, int depth, int minibatches) {
  const SmallMlp mlp;
  RandomBatches batches(minibatches, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto engine = mlp.engine(depth, config_for(method, "adam", micro_for(method)));
  std::vector<VersionRecord> trace;
  train_losses(*engine, batches, minibatches, 0.001F, &trace);
  return trace;
}

// F1 to F3 and O6, from what the stages really did.
TEST(VersionTrace, PipeOptim) {
  for (const int depth : {1, 2, 3, 4, 8}) {
    std::vector<std::int64_t> updates(static_cast<std::size_t>(depth), 0);
    for (const VersionRecord& record : trace_of("pipeoptim", depth, 12)) {
      const std::int64_t warm_up = depth - 1 - record.stage;
      const std::int64_t t = record.minibatch;
      if (record.op == 'F') {
        EXPECT_EQ(record.version, std::max<std::int64_t>(0, t - warm_up));
        EXPECT_EQ(record.horizon, std::min(t, warm_up));
      } else if (record.op == 'B') {
        EXPECT_EQ(record.version, t);
        EXPECT_EQ(record.horizon, 0);
      } else {
        EXPECT_EQ(record.version, t + 1);
        EXPECT_EQ(++updates[static_cast<std::size_t>(record.stage)], t + 1);
      }
    }
    for (const std::int64_t count : updates) EXPECT_EQ(count, 12);
  }
}

// What the stages' own counters saw, for every method, is what its schedule says;
// tests/pipeline/schedule_test.cpp holds the schedules to the table of docs/methods.md.
TEST(VersionTrace, EqualsTheScheduleOfEveryMethod) {
  constexpr int kMinibatches = 12;
  for (const Method& method : methods()) {
    for (const int depth : {1, 2, 3, 4, 8}) {
      SCOPED_TRACE(std::string(method.name) + ", D = " + std::to_string(depth));
      const SmallMlp mlp;
      const int micro = micro_for(method.name);
      EngineConfig config = config_for(method.name, "adam", micro);
      if (!divide(config, depth)) continue;
      const int chunks = chunks_of(method, config.chunks);
      const Schedule schedule = make_schedule(method.name, {.workers = depth / chunks,
                                                            .minibatches = kMinibatches,
                                                            .microbatches_per_update = micro,
                                                            .chunks = config.chunks});
      RandomBatches batches(kMinibatches, mlp.records, mlp.widths.front(), mlp.widths.back());
      const auto engine = mlp.engine(depth, config);
      std::vector<VersionRecord> trace;
      train_losses(*engine, batches, kMinibatches, 0.001F, &trace);
      std::size_t next = 0;
      for (int k = 0; k < depth; ++k) {
        for (const Instruction& i : schedule.stages[static_cast<std::size_t>(k)]) {
          const bool update = is_update(i.op);
          const bool forward = i.op == Op::kForward;
          if (!update && !forward && !makes_input_gradient(i.op)) continue;
          ASSERT_LT(next, trace.size());
          const VersionRecord& record = trace[next++];
          EXPECT_EQ(record.stage, k);
          EXPECT_EQ(record.op, update ? 'U' : forward ? 'F' : 'B');
          EXPECT_EQ(record.minibatch, i.minibatch);
          EXPECT_EQ(record.version, i.version) << record.op << i.microbatch;
          EXPECT_EQ(record.horizon, update ? 0 : i.horizon) << record.op << i.microbatch;
        }
      }
      EXPECT_EQ(next, trace.size());
    }
  }
}

TEST(VersionTrace, PipeDreamUsesOneVersionForBothPasses) {
  for (const VersionRecord& record : trace_of("pipedream", 4, 12)) {
    if (record.op == 'U') continue;
    EXPECT_EQ(record.version, std::max<std::int64_t>(0, record.minibatch - (3 - record.stage))) << record.op;
  }
}

TEST(VersionTrace, TwoBufferedWeightsAreOneUpdateLate) {
  for (const VersionRecord& record : trace_of("pipedream-2bw", 4, 6)) {
    if (record.op == 'U') continue;
    EXPECT_EQ(record.version, std::max<std::int64_t>(0, record.minibatch - 1)) << record.op;
  }
}

// O7: forwards (and the whole evaluation) leave the master weights as they were; at most two copies exist.
TEST(Engine, EvaluationChangesNothing) {
  const SmallMlp mlp;
  RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto engine = mlp.engine(4, config_for("pipeoptim"));
  train_losses(*engine, batches, 8, 0.02F);
  const auto before = all_weights(*engine);
  const PassResult first = engine->evaluate(batches, 5);
  EXPECT_EQ(first.records, 5 * mlp.records);
  EXPECT_EQ(all_weights(*engine), before);
  EXPECT_EQ(engine->evaluate(batches, 5).loss, first.loss);
  const auto stages = engine->stage_info();
  for (std::size_t k = 0; k < stages.size(); ++k)
    EXPECT_EQ(stages[k].weight_copies, k + 1 < stages.size() ? 2 : 1);
}

// F5: a flush keeps weights and optimizer state; two passes with exact horizons follow the simulation's
// restart.
TEST(Engine, PassesContinue) {
  const SmallMlp mlp;
  RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto one = mlp.engine(1, config_for("pipeoptim", "adam"));
  const auto expected = train_losses(*one, batches, kSteps, 0.003F);
  const auto two = mlp.engine(1, config_for("pipeoptim", "adam"));
  auto losses = train_losses(*two, batches, 10, 0.003F);
  batches.first = 10;
  const auto rest = train_losses(*two, batches, kSteps - 10, 0.003F, nullptr, 10);
  losses.insert(losses.end(), rest.begin(), rest.end());
  EXPECT_EQ(losses, expected);
}

TEST(Engine, SteadyStateAllocatesNoDeviceMemory) {
  const SmallMlp mlp;
  RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto engine = mlp.engine(4, config_for("pipeoptim", "adamw"));
  train_losses(*engine, batches, kSteps, 0.003F);
  const std::int64_t before = allocation_count();
  train_losses(*engine, batches, kSteps, 0.003F);
  EXPECT_EQ(allocation_count(), before);
}

TEST(Engine, StopsInOrderWhenAsked) {
  const SmallMlp mlp;
  RandomBatches batches(200, mlp.records, mlp.widths.front(), mlp.widths.back());
  const auto engine = mlp.engine(4, config_for("pipeoptim"));
  TrainPass pass;
  pass.minibatches = 200;
  pass.learning_rate = [](std::int64_t) { return 0.01F; };
  std::int64_t seen = 0;
  pass.on_step = [&](const StepResult& step) {
    EXPECT_EQ(step.step, seen++);
    return step.step < 3;
  };
  engine->train(batches, pass);
  EXPECT_GE(seen, 4);
  EXPECT_LT(seen, 200);
  for (const OptimizerStatus& status : engine->optimizer_status()) EXPECT_EQ(status.steps, seen);
}

TEST(Engine, NonFiniteLossStopsTraining) {
  const SmallMlp mlp;
  RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
  batches.inputs(5)[3] = std::nanf("");
  const auto engine = mlp.engine(4, config_for("pipeoptim"));
  try {
    train_losses(*engine, batches, kSteps, 0.02F);
    FAIL() << "a NaN loss went unnoticed";
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("step 5"), std::string::npos) << error.what();
  }
  for (const float value : all_weights(*engine)) ASSERT_TRUE(std::isfinite(value));  // the guard held
}

// Its second forward fails, as a device may.
class Failing final : public Layer {
 public:
  std::string describe() const override { return "failing"; }
  LayerPlan plan(Device, int, const Shape& input) override {
    LayerPlan plan;
    plan.output = input;
    plan.needs = Needs::kNothing;
    return plan;
  }
  void forward(const ForwardContext& context) const override {
    context.stream.submit([left = left_.get()] {
      if (left->fetch_sub(1) == 1) throw std::runtime_error("the device is gone");
    });
  }
  void backward_input(const BackwardContext& context) const override {
    context.stream.fill_zero(context.input_gradient.data, context.input_gradient.bytes());
  }

 private:
  std::unique_ptr<std::atomic<int>> left_ = std::make_unique<std::atomic<int>>(2);
};

// Gets nothing back after the first mini-batches, and so has no more to give.
class Stopping final : public BatchSource {
 public:
  explicit Stopping(RandomBatches& batches) : batches_(batches) {}
  Batch acquire(std::int64_t t) override {
    if (!has(t)) throw std::logic_error("would have waited for ever");
    return batches_.acquire(t);
  }
  void release(std::int64_t) override {}
  bool wait(std::int64_t t, std::chrono::milliseconds limit) override {
    if (!has(t)) std::this_thread::sleep_for(limit);
    return has(t);
  }

 private:
  static bool has(std::int64_t t) { return t < 3; }
  RandomBatches& batches_;
};

TEST(Engine, AFailureEndsTheWaitForData) {
  RandomBatches batches(kSteps, 8, 12, 12);
  Stopping source(batches);
  std::vector<std::vector<NamedLayer>> stages(2);
  stages[0].push_back({"0", std::make_unique<Linear>(12, 12)});
  stages[1].push_back({"1", std::make_unique<Failing>()});
  Engine engine(config_for("pipeoptim"), std::move(stages), std::make_unique<SoftmaxCrossEntropy>(), {8, 12});
  TrainPass pass;
  pass.minibatches = kSteps;
  pass.learning_rate = [](std::int64_t) { return 0.01F; };
  EXPECT_THROW(engine.train(source, pass), std::runtime_error);
}

TEST(Engine, RefusesImpossibleNumbers) {
  const SmallMlp mlp;
  const auto make = [&](EngineConfig config, int depth) { mlp.engine(depth, std::move(config)); };
  EXPECT_THROW(make(config_for("pipeoptim", "sgdm", 3), 2), std::invalid_argument);  // 8 records in 3 parts
  EXPECT_THROW(make(config_for("pipeoptim", "sgdm", 0), 2), std::invalid_argument);
  EXPECT_THROW(make(config_for("pipedream-2bw", "sgdm", 1), 4), std::invalid_argument);
  EXPECT_THROW(make(config_for("pipeoptin"), 2), std::invalid_argument);
  EXPECT_THROW(make(config_for("pipeoptim", "adamv"), 2), std::invalid_argument);
  const auto engine = mlp.engine(2, config_for("pipeoptim"));
  EXPECT_THROW(engine->write_tensor("0.weight", std::vector<float>(3)), std::invalid_argument);
  const std::vector<float> row(static_cast<std::size_t>(mlp.widths[0]));  // of 0.weight
  EXPECT_NO_THROW(engine->write_rows("0.weight", mlp.widths[1] - 1, row));
  EXPECT_THROW(engine->write_rows("0.weight", mlp.widths[1], row), std::invalid_argument);
  EXPECT_THROW(engine->write_rows("0.weight", -1, row), std::invalid_argument);
  EXPECT_THROW(engine->write_rows("0.weight", 0, std::vector<float>(3)), std::invalid_argument);
  EXPECT_THROW(engine->read_tensor("nothing"), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim::test
