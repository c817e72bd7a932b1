// A rule from outside of the library: what it is promised, and that writing it once gives all passes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "optim/step.h"

namespace pipeoptim::test {
namespace {

// Keeps what it was told; direction 1.
struct Witness {
  static constexpr int kSlots = 3;
  static constexpr const char* kSlotNames[kSlots] = {"steps", "correction1", "correction2"};

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    slots[0] = static_cast<float>(now.scalars.steps);
    slots[1] = now.scalars.correction1;
    slots[2] = now.scalars.correction2;
    return w - now.lr * g - now.weight_decay;
  }
  PO_HD float direction(const float*, const StepScalars& at) const { return static_cast<float>(at.steps); }
  PO_HD float coast_step(float w, const float*, const CoastStep& step, float weight_decay) const {
    return w + step.momentum + weight_decay;
  }
};

// The first chunk ends within the decaying group.
OptimizerArena arena() {
  return {.elements = 10000, .groups = {{0, 9000, true}, {9000, 10000, false}}, .names = {}};
}

struct Arrays {
  Buffer<float> weights{Device::host(), 10000}, gradients{Device::host(), 10000},
      predicted{Device::host(), 10000};
};

TEST(OwnRule, IsToldTheCompletedStepsAndCorrections) {
  Stream stream(Device::host());
  RuleOptimizer<Witness> optimizer(Device::host(), Witness{}, {.beta1 = 0.5, .beta2 = 0.75}, {}, arena());
  Arrays arrays;
  for (const float gradient : {1.0f, NAN, 2.0f}) {
    stream.synchronize();
    arrays.gradients.data()[9999] = gradient;
    optimizer.update(stream, arrays.weights.data(), arrays.gradients.data(), 1);
  }
  const std::vector<float> rates = {0.5f, 0.5f};
  optimizer.predict(stream, arrays.weights.data(), arrays.predicted.data(), rates);
  stream.synchronize();
  const auto state = optimizer.state();
  EXPECT_EQ(state[0].first, "steps");
  for (const std::size_t i : {0, 9999}) {
    EXPECT_EQ(state[0].second[i], 2) << "the skipped step does not count";
    EXPECT_EQ(state[1].second[i], static_cast<float>(1 / (1 - 0.25)));
    EXPECT_EQ(state[2].second[i], static_cast<float>(1 / std::sqrt(1 - 0.5625)));
  }
  EXPECT_EQ(arrays.weights.data()[9999], -3);
  EXPECT_EQ(arrays.predicted.data()[9999], -3 - 2 * 0.5f * 2);
}

TEST(OwnRule, CoastsStepByStepWithItsGroupsDecay) {
  Stream stream(Device::host());
  const OptimizerConfig config{.weight_decay = 0.25, .predictor = Predictor::kGeometric};
  RuleOptimizer<Witness> fused(Device::host(), Witness{}, {.beta1 = 0.5}, config, arena());
  RuleOptimizer<Witness> apart(Device::host(), Witness{}, {.beta1 = 0.5}, config, arena());
  Arrays a, b;
  const std::vector<float> rates(3, 0.1f);
  fused.update_predict(stream, a.weights.data(), a.gradients.data(), 1, a.predicted.data(), rates);
  apart.update(stream, b.weights.data(), b.gradients.data(), 1);
  apart.predict(stream, b.weights.data(), b.predicted.data(), rates);
  stream.synchronize();
  EXPECT_EQ(std::memcmp(a.predicted.data(), b.predicted.data(), 10000 * sizeof(float)), 0);
  // w = -decay, then three times beta1^i + decay, all exact in binary.
  EXPECT_EQ(a.predicted.data()[0], -0.25f + 0.875f + 0.75f);
  EXPECT_EQ(a.predicted.data()[8999], -0.25f + 0.875f + 0.75f);
  EXPECT_EQ(a.predicted.data()[9000], 0.875f);
}

}  // namespace
}  // namespace pipeoptim::test
