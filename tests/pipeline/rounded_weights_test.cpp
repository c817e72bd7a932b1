// Which copy of its weights a layer is given where products are made in bf16.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "layers/concat.h"
#include "layers/residual.h"
#include "pipeline/stage.h"

namespace pipeoptim::test {
namespace {

const Shape kInput = {2, 3};

// Gives back what it is given, and remembers which weights it was given with it.
class Witness final : public Layer {
 public:
  struct Seen {
    std::vector<Factor> forward, backward;
  };
  explicit Witness(Seen* seen) : seen_(seen) {}

  // What may be rounded, with and without decay, among what may not.
  static std::vector<Parameter> declared() {
    return {
        {.name = "bias", .shape = {5}, .initializer = {}, .decay = Decay::kNo},
        {.name = "matrix", .shape = {5, 7}, .initializer = {}, .may_be_rounded = true},
        {.name = "table", .shape = {3, 3}, .initializer = {}},
        {.name = "vector", .shape = {20}, .initializer = {}, .decay = Decay::kNo, .may_be_rounded = true}};
  }

  std::string describe() const override { return "witness"; }
  std::vector<Parameter> parameters() const override { return declared(); }
  LayerPlan plan(Device, int, const Shape& input) override { return {.output = input}; }
  void forward(const ForwardContext& at) const override {
    seen_->forward = factors(at.weights);
    std::copy(at.input.data, at.input.data + at.input.elements(), at.output.data);
  }
  void backward_input(const BackwardContext& at) const override {
    seen_->backward = factors(at.weights);
    if (!at.input_gradient.data) return;
    std::copy(at.output_gradient.data, at.output_gradient.data + at.output_gradient.elements(),
              at.input_gradient.data);
  }
  void backward_weights(const BackwardContext& at) const override {
    EXPECT_EQ(factors(at.weights).back().rounded, seen_->backward.back().rounded);
    for (std::size_t i = 0; i < declared().size(); ++i) {
      std::fill_n(at.gradients[i], declared()[i].shape.elements(), 0.0F);
    }
  }

 private:
  template <typename Weights>
  static std::vector<Factor> factors(const Weights& weights) {
    EXPECT_EQ(weights.pointers.size(), declared().size());
    std::vector<Factor> all;
    for (std::size_t i = 0; i < declared().size(); ++i) all.push_back(weights.factor(i));
    return all;
  }

  Seen* seen_;
};

enum class Expected { kFp32, kRounded };

// A stage of witnesses: one by itself, and one in each branch of a residual block and of a concatenation.
class RoundedWeights : public testing::Test {
 protected:
  static constexpr std::size_t kWitnesses = 5;
  // Each tensor is smaller than the alignment: two a witness in bf16, two in fp32.
  static constexpr std::size_t kRounded = kWitnesses * 2 * (kAlignment / sizeof(Bf16)),
                               kOthers = kWitnesses * 2 * (kAlignment / sizeof(float));

  static std::vector<NamedLayer> named(Witness::Seen* seen) {
    std::vector<NamedLayer> layers;
    layers.push_back({"witness", std::make_unique<Witness>(seen)});
    return layers;
  }
  void make(MatrixPrecision precision, int predicted_slots, OptimizerConfig optimizer = {.rule = "sgd"}) {
    std::vector<NamedLayer> layers = named(&seen_[0]);
    layers.push_back(
        {"residual", std::make_unique<Residual>(named(&seen_[1]), named(&seen_[2]), FinalActivation::kNone)});
    std::vector<std::vector<NamedLayer>> branches;
    branches.push_back(named(&seen_[3]));
    branches.push_back(named(&seen_[4]));
    branches[1][0].name = "other";
    layers.push_back({"concat", std::make_unique<Concat>(std::move(branches))});
    stage_ = std::make_unique<Stage>(StageOptions{.device = Device::host(),
                                                  .optimizer = std::move(optimizer),
                                                  .precision = precision,
                                                  .input = kInput,
                                                  .version_slots = 1,
                                                  .predicted_slots = predicted_slots},
                                     std::move(layers));
    stage_->allocate();
    for (std::int64_t i = 0; i < stage_->parameter_elements(); ++i) {
      stage_->weights()[i] = 1 + 0.001F * static_cast<float>(i);
    }
  }

  void pass(WeightSource source) {
    const Stage::Pass pass{.source = source, .version_slot = 0, .predicted_slot = 1};
    stage_->forward(stream_, pass);
    stage_->backward(stream_, pass, Stage::Part::kBoth);
  }

  // The values are those of the live weights.
  void expect_seen(Expected expected) const {
    for (std::size_t k = 0; k < kWitnesses; ++k) {
      for (const auto& factors : {seen_[k].forward, seen_[k].backward}) {
        ASSERT_EQ(factors.size(), Witness::declared().size());
        for (std::size_t i = 0; i < factors.size(); ++i) {
          const PlacedTensor& placed = stage_->parameters()[k * factors.size() + i];
          SCOPED_TRACE(placed.tensor.name);
          expect_factor(factors[i], stage_->weights() + placed.offset, placed.tensor.shape.elements(),
                        Witness::declared()[i].may_be_rounded ? expected : Expected::kFp32);
        }
      }
    }
  }

  static void expect_factor(const Factor& factor, const float* live, std::int64_t elements,
                            Expected expected) {
    ASSERT_EQ(factor.rounded != nullptr, expected == Expected::kRounded);
    ASSERT_EQ(factor.values == nullptr, expected == Expected::kRounded);
    for (std::int64_t i = 0; i < elements; ++i) {
      if (expected == Expected::kRounded) {
        ASSERT_EQ(factor.rounded[i].bits, to_bf16(live[i]).bits) << i;
      } else {
        ASSERT_EQ(factor.values[i], live[i]) << i;
      }
    }
  }

  std::vector<Witness::Seen> seen_{kWitnesses};
  Stream stream_{Device::host(), {.execution = HostExecution::kInline}};
  std::unique_ptr<Stage> stage_;
};

TEST_F(RoundedWeights, AreThePredictedOnesThatMayBe) {
  make(MatrixPrecision::kBf16, 2);
  stage_->predict(stream_, 1, {});
  pass(WeightSource::kPredicted);
  expect_seen(Expected::kRounded);
}

TEST_F(RoundedWeights, AreNotTheLiveOnesNorVersions) {
  make(MatrixPrecision::kBf16, 2);
  pass(WeightSource::kLive);
  expect_seen(Expected::kFp32);
  stage_->stash_weights(stream_, 0);
  pass(WeightSource::kVersion);
  expect_seen(Expected::kFp32);
}

TEST_F(RoundedWeights, AreNoneInFp32) {
  for (const MatrixPrecision precision : {MatrixPrecision::kFp32, MatrixPrecision::kTf32}) {
    make(precision, 2);
    stage_->predict(stream_, 1, {});
    pass(WeightSource::kPredicted);
    expect_seen(Expected::kFp32);
  }
}

TEST_F(RoundedWeights, FollowTheUpdate) {
  make(MatrixPrecision::kBf16, 2, {.rule = "sgd", .weight_decay = 0.5});
  pass(WeightSource::kLive);  // gradients of zero
  stage_->update_predict(stream_, 0.25F, 1, {});
  pass(WeightSource::kPredicted);
  expect_seen(Expected::kRounded);
}

// Placing what is rounded first keeps each parameter in its group.
TEST_F(RoundedWeights, DecayAsDeclared) {
  make(MatrixPrecision::kBf16, 2, {.rule = "sgd", .weight_decay = 0.5});
  pass(WeightSource::kLive);  // gradients of zero
  std::vector<float> before(stage_->weights(), stage_->weights() + stage_->parameter_elements());
  stage_->update(stream_, 0.25F);
  for (std::size_t k = 0; k < stage_->parameters().size(); ++k) {
    const PlacedTensor& placed = stage_->parameters()[k];
    const Decay decay = Witness::declared()[k % Witness::declared().size()].decay;
    for (std::int64_t i = placed.offset; i < placed.offset + placed.tensor.shape.elements(); ++i) {
      const float w = before[static_cast<std::size_t>(i)];
      ASSERT_EQ(stage_->weights()[i], decay == Decay::kYes ? w - 0.25F * (0.5F * w) : w)
          << placed.tensor.name;
    }
  }
}

TEST_F(RoundedWeights, HalveTheirMemory) {
  make(MatrixPrecision::kBf16, 2);
  EXPECT_EQ(stage_->memory().predicted, 2 * (2 * kRounded + 4 * kOthers));
  EXPECT_EQ(stage_->memory().weights, 4 * (kRounded + kOthers));
  EXPECT_EQ(stage_->memory().versions, 4 * (kRounded + kOthers));
}

// Nothing is placed otherwise where there is nothing to round.
TEST_F(RoundedWeights, ChangeNothingWithoutAPrediction) {
  make(MatrixPrecision::kFp32, 2);
  const std::vector<PlacedTensor> fp32 = stage_->parameters();
  make(MatrixPrecision::kBf16, 0);
  EXPECT_EQ(stage_->memory().predicted, 0);
  for (std::size_t i = 0; i < fp32.size(); ++i) EXPECT_EQ(stage_->parameters()[i].offset, fp32[i].offset);
}

}  // namespace
}  // namespace pipeoptim::test
