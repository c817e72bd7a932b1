// O4, O5, O7 and O10 of docs/methods.md: engines whose gradients are known in advance, so that it is known
// when a prediction must hit. Each stage is one layer that records the weights it is given.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/engine.h"
#include "tests/support/small_mlp.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

constexpr int kDepth = 4;
constexpr int kWeights = 6;
constexpr int kSteps = 40;
constexpr float kRate = 0.01F;

using Gradient = float (*)(std::int64_t minibatch, int element);

// What one stage multiplied by, mini-batch by mini-batch.
struct Seen {
  float forward[kSteps][kWeights];
  float backward[kSteps][kWeights];
};

// Passes its input on unchanged. Its weights' gradient depends on the mini-batch alone.
class Probe final : public Layer {
 public:
  Probe(Gradient gradient, Seen* seen) : gradient_(gradient), seen_(seen) {}
  std::string describe() const override { return "probe"; }
  std::vector<Parameter> parameters() const override {
    return {{"weight", {kWeights}, {Initializer::Kind::kConstant, 1.0F}}};
  }
  LayerPlan plan(Device, int, const Shape& input) override {
    elements_ = input.elements();
    LayerPlan plan;
    plan.output = input;
    plan.needs = Needs::kNothing;
    return plan;
  }
  void forward(const ForwardContext& context) const override {
    copy(context.stream, context.output.data, context.input.data);
    context.stream.submit([to = seen_->forward[context.random.minibatch], from = context.weights[0]] {
      std::copy_n(from, kWeights, to);
    });
  }
  void backward_input(const BackwardContext& context) const override {
    if (context.input_gradient.data) {
      copy(context.stream, context.input_gradient.data, context.output_gradient.data);
    }
  }
  void backward_weights(const BackwardContext& context) const override {
    context.stream.submit([seen = seen_, gradient = gradient_, t = context.random.minibatch,
                           from = context.weights[0], to = context.gradients[0]] {
      std::copy_n(from, kWeights, seen->backward[t]);
      for (int i = 0; i < kWeights; ++i) to[i] = gradient(static_cast<std::int64_t>(t), i);
    });
  }

 private:
  void copy(Stream& stream, float* to, const float* from) const {
    stream.copy(to, from, static_cast<std::size_t>(elements_) * sizeof(float));
  }
  Gradient gradient_;
  Seen* seen_;
  std::int64_t elements_ = 0;
};

std::vector<Seen> probe(int depth, const EngineConfig& config, Gradient gradient) {
  constexpr int kRecords = 2, kClasses = 3;
  std::vector<Seen> seen(static_cast<std::size_t>(depth));
  std::vector<std::vector<NamedLayer>> stages(seen.size());
  for (std::size_t k = 0; k < seen.size(); ++k) {
    stages[k].push_back({"probe" + std::to_string(k), std::make_unique<Probe>(gradient, &seen[k])});
  }
  Engine engine(config, std::move(stages), std::make_unique<SoftmaxCrossEntropy>(),
                Shape{kRecords, kClasses});
  for (const ModelTensor& tensor : engine.tensors()) {
    engine.write_tensor(tensor.name, std::vector<float>(kWeights, 1.0F));
  }
  RandomBatches batches(kSteps, kRecords, kClasses, kClasses);
  train_losses(engine, batches, kSteps, kRate);
  return seen;
}

EngineConfig with(const std::string& method, const std::string& rule,
                  HorizonPolicy horizon = HorizonPolicy::kExact, Predictor predictor = Predictor::kLinear) {
  EngineConfig config;
  config.method = method;
  config.horizon = horizon;
  config.optimizer.rule = rule;
  config.optimizer.predictor = predictor;
  return config;
}

float constant(std::int64_t, int element) { return 0.5F - 0.3F * static_cast<float>(element); }

// The largest difference between what mini-batch t's forward used and version `t + late`, over all elements.
double error(const Seen& stage, const Seen& sequential, int t, int late = 0) {
  double largest = 0;
  for (int i = 0; i < kWeights; ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(stage.forward[t][i]) -
                                         static_cast<double>(sequential.forward[t + late][i])));
  }
  return largest;
}

// O4 and O10: with a constant gradient Adam's direction is constant, so every prediction made after the first
// update hits: forwards on all stages use sequential training's weights.
TEST(Oracles, AdamWithAConstantGradientIsPredictedExactly) {
  const Seen sequential = probe(1, with("sequential", "adam"), constant)[0];
  for (const HorizonPolicy horizon : {HorizonPolicy::kExact, HorizonPolicy::kPaper}) {
    const auto stages = probe(kDepth, with("pipeoptim", "adam", horizon), constant);
    for (int k = 0; k < kDepth; ++k) {
      for (int t = kDepth - k; t < kSteps; ++t) {
        EXPECT_LT(error(stages[static_cast<std::size_t>(k)], sequential, t), tolerance::kPrediction)
            << "stage " << k << ", mini-batch " << t;
      }
    }
  }
}

// ... and the released code's distance is one step too far, on every stage that predicts.
TEST(Oracles, ReleasedCodePredictsOneStepTooFar) {
  const Seen sequential = probe(1, with("sequential", "adam"), constant)[0];
  const auto stages = probe(kDepth, with("pipeoptim", "adam", HorizonPolicy::kReleasedCode), constant);
  for (int k = 0; k + 1 < kDepth; ++k) {
    for (int t = kDepth - k; t + 1 < kSteps; ++t) {
      EXPECT_LT(error(stages[static_cast<std::size_t>(k)], sequential, t, 1), tolerance::kPrediction);
      EXPECT_GT(error(stages[static_cast<std::size_t>(k)], sequential, t), 0.5 * static_cast<double>(kRate));
    }
  }
}

// Without a prediction the same forwards are D - 1 - k updates behind: the comparison above can fail.
TEST(Oracles, NaiveStaysBehind) {
  const Seen sequential = probe(1, with("sequential", "adam"), constant)[0];
  const auto stages = probe(kDepth, with("naive", "adam"), constant);
  for (int k = 0; k < kDepth; ++k) {
    const int t = kSteps - 1;
    EXPECT_NEAR(error(stages[static_cast<std::size_t>(k)], sequential, t),
                (kDepth - 1 - k) * static_cast<double>(kRate), tolerance::kPrediction);
  }
}

// O5: momentum settles on a constant gradient, and with it the error of the linear prediction goes to 0.
TEST(Oracles, MomentumWithAConstantGradientConverges) {
  EngineConfig config = with("pipeoptim", "sgdm");
  config.optimizer.momentum = 0.9;
  EngineConfig reference = config;
  reference.method = "sequential";
  const Seen sequential = probe(1, reference, constant)[0];
  const auto stages = probe(kDepth, config, constant);
  for (int k = 0; k + 1 < kDepth; ++k) {
    const Seen& stage = stages[static_cast<std::size_t>(k)];
    // 30 steps later the momentum is 0.9^30 = 0.042 times as far from its limit.
    EXPECT_GT(error(stage, sequential, 8), 1e-3);
    EXPECT_LT(error(stage, sequential, 38), 0.05 * error(stage, sequential, 8));
  }
}

float ends_at_20(std::int64_t minibatch, int element) {
  return minibatch < 20 ? constant(minibatch, element) : 0.0F;
}

// O5: once no gradient follows, the momentum only decays, and the geometric prediction is exact.
TEST(Oracles, DecayingMomentumIsPredictedGeometrically) {
  EngineConfig config = with("pipeoptim", "sgdm", HorizonPolicy::kExact, Predictor::kGeometric);
  config.optimizer.momentum = 0.9;
  EngineConfig reference = with("sequential", "sgdm");
  reference.optimizer.momentum = 0.9;
  const Seen sequential = probe(1, reference, ends_at_20)[0];
  const auto geometric = probe(kDepth, config, ends_at_20);
  config.optimizer.predictor = Predictor::kLinear;
  const auto linear = probe(kDepth, config, ends_at_20);
  for (int k = 0; k + 1 < kDepth; ++k) {
    const auto stage = static_cast<std::size_t>(k);
    for (int t = 20 + kDepth; t < kSteps; ++t) {
      EXPECT_LT(error(geometric[stage], sequential, t), tolerance::kPrediction) << "stage " << k << ", " << t;
    }
    EXPECT_GT(error(linear[stage], sequential, 24), 1e-3);
  }
}

// O7: the gradients do not depend on the weights, so the live weights that the backwards read are sequential
// training's, bit for bit, unless a forward or a prediction touched them.
TEST(Oracles, ForwardsLeaveTheLiveWeightsAlone) {
  const Seen sequential = probe(1, with("sequential", "adamw"), ends_at_20)[0];
  for (const Seen& stage : probe(kDepth, with("pipeoptim", "adamw"), ends_at_20)) {
    for (int t = 0; t < kSteps; ++t) {
      for (int i = 0; i < kWeights; ++i) ASSERT_EQ(stage.backward[t][i], sequential.backward[t][i]) << t;
    }
  }
}

}  // namespace
}  // namespace pipeoptim::test
