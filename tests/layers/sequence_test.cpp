#include "layers/sequence.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "layers/activation.h"
#include "layers/batch_norm.h"
#include "layers/concat.h"
#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/flatten.h"
#include "layers/linear.h"
#include "layers/pooling.h"
#include "layers/residual.h"
#include "tests/support/finite_difference.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::PlannedLayer;
using test::PlannedOptions;
using test::same_bits;

template <typename... Layers>
std::vector<NamedLayer> chain(Layers... layers) {
  std::vector<NamedLayer> named;
  (named.push_back({std::to_string(named.size()), std::move(layers)}), ...);
  return named;
}

LayerPtr conv(std::int64_t in, std::int64_t out) {
  return std::make_unique<Conv2d>(
      Conv2dOptions{.in = in, .out = out, .kernel = 3, .padding = 1, .bias = Bias::kNo});
}
LayerPtr norm(std::int64_t channels, Activation activation = Activation::kNone) {
  return std::make_unique<BatchNorm2d>(channels, BatchNormOptions{.activation = activation});
}
LayerPtr relu() { return std::make_unique<ReLU>(); }
LayerPtr drop() { return std::make_unique<Dropout>(0.25); }

// Small networks that hit every placement: kept and transient boundaries, in place first, last, in runs and
// behind a layer that needs its output; nested composites.
std::vector<std::pair<Shape, std::vector<NamedLayer> (*)()>> networks() {
  return {
      {Shape{4, 12},
       [] {
         return chain(std::make_unique<Linear>(12, 9), relu(), drop(), std::make_unique<Linear>(9, 7),
                      std::make_unique<Tanh>());
       }},
      {Shape{4, 12},
       [] { return chain(drop(), relu(), drop(), drop(), std::make_unique<Linear>(12, 5), drop()); }},
      {Shape{4, 12}, [] { return chain(std::make_unique<Tanh>(), std::make_unique<Sigmoid>(), relu()); }},
      {Shape{4, 12}, [] { return chain(relu()); }},
      {Shape{3, 8, 8, 3},
       [] {
         return chain(conv(3, 6), norm(6, Activation::kRelu), std::make_unique<MaxPool2d>(), conv(6, 4),
                      norm(4), relu(), std::make_unique<AvgPool2d>(), drop(), std::make_unique<Flatten>(),
                      std::make_unique<GELU>(), std::make_unique<Linear>(16, 5));
       }},
      {Shape{3, 8, 8, 3},  // a run of layers that need nothing: transient memory
       [] {
         return chain(std::make_unique<AvgPool2d>(PoolOptions{3, 1, 1}), std::make_unique<MaxPool2d>(),
                      drop(), std::make_unique<AvgPool2d>(), std::make_unique<Flatten>(), drop());
       }},
      {Shape{2, 4, 4, 3},  // backward may end at the third layer
       [] {
         return chain(drop(), std::make_unique<Flatten>(), std::make_unique<Linear>(48, 7), relu(),
                      std::make_unique<Linear>(7, 5));
       }},
      {Shape{2, 6, 6, 4},
       [] {
         return chain(
             std::make_unique<Residual>(chain(conv(4, 4), norm(4, Activation::kRelu), conv(4, 4), norm(4))),
             std::make_unique<Residual>(chain(conv(4, 6), std::make_unique<Tanh>()),
                                        chain(conv(4, 6), relu()), FinalActivation::kNone),
             drop(), std::make_unique<GlobalAvgPool>(), std::make_unique<Linear>(6, 3));
       }},
      {Shape{2, 5, 5, 4},  // branches that end in a layer whose weights read the branch's output gradient
       [] {
         std::vector<std::vector<NamedLayer>> branches;
         branches.push_back(chain(conv(4, 3)));
         branches.push_back(chain(relu(), conv(4, 2)));
         return chain(std::make_unique<Residual>(chain(conv(4, 4), relu(), conv(4, 4)), chain(conv(4, 4))),
                      std::make_unique<Concat>(std::move(branches)));
       }},
      {Shape{2, 6, 6, 4},
       [] {
         std::vector<std::vector<NamedLayer>> branches;
         branches.push_back(chain(conv(4, 3), relu()));
         branches.push_back(chain(drop(), conv(4, 5), drop()));
         branches.push_back(chain(std::make_unique<Residual>(chain(conv(4, 4), norm(4)))));
         return chain(std::make_unique<Concat>(std::move(branches)),
                      std::make_unique<Sequence>(chain(relu(), drop())), std::make_unique<GlobalAvgPool>());
       }},
  };
}

class SequenceTest : public testing::TestWithParam<std::size_t> {
 protected:
  Shape shape() const { return networks()[GetParam()].first; }
  std::vector<NamedLayer> layers() const { return networks()[GetParam()].second(); }
  PlannedLayer make(PlannedOptions options) const { return planned<Sequence>(shape(), options, layers()); }
  std::vector<float> input(unsigned seed) const { return test::random_values(shape().elements(), seed); }
};

// Each layer on its own memory is the oracle of where the sequence places things.
TEST_P(SequenceTest, EqualsItsLayersOneByOne) {
  auto sequence = make({});
  std::vector<PlannedLayer> alone;
  std::vector<float> value = input(1);
  Shape extents = shape();
  std::size_t parameter = 0;
  std::uint64_t random_layer = 0;
  for (NamedLayer& named : layers()) {
    const auto random_layers = static_cast<std::uint64_t>(named.layer->random_layers());
    alone.emplace_back(std::move(named.layer), extents, PlannedOptions{.random_layer = random_layer});
    random_layer += random_layers;
    extents = alone.back().plan().output;
    for (std::size_t i = 0; i < alone.back().parameters(); ++i, ++parameter) {
      std::ranges::copy(sequence.weights(parameter), alone.back().weights(i).begin());
    }
    value = alone.back().forward(value);
  }
  EXPECT_EQ(sequence.plan().output, extents);
  EXPECT_TRUE(same_bits(sequence.forward(input(1)), value));

  std::vector<float> gradient = test::random_values(extents.elements(), 2);
  const auto input_gradient = sequence.backward(gradient);
  for (std::size_t i = alone.size(); i-- > 0;) gradient = alone[i].backward(gradient);
  EXPECT_TRUE(same_bits(input_gradient, gradient));
  parameter = 0;
  for (const PlannedLayer& layer : alone) {
    for (const auto& values : layer.all_gradients()) {
      EXPECT_TRUE(same_bits(sequence.gradients(parameter++), values));
    }
  }
}

TEST_P(SequenceTest, KeepsMicroBatchesInFlightApart) {
  auto alone = make({.slots = 3});
  auto together = make({.slots = 3});
  const auto dy = test::random_values(alone.plan().output.elements(), 2);
  std::vector<std::vector<float>> dx;
  for (const int slot : {1, 0, 2}) {
    alone.forward(input(10U + static_cast<unsigned>(slot)), Mode::kTraining, slot);
    dx.push_back(alone.backward(dy, slot == 1 ? GradientMode::kStore : GradientMode::kAdd, slot));
  }
  for (const int slot : {0, 1, 2}) {
    together.forward(input(10U + static_cast<unsigned>(slot)), Mode::kTraining, slot);
  }
  EXPECT_TRUE(same_bits(together.backward(dy, GradientMode::kStore, 1), dx[0]));
  EXPECT_TRUE(same_bits(together.backward(dy, GradientMode::kAdd, 0), dx[1]));
  EXPECT_TRUE(same_bits(together.backward(dy, GradientMode::kAdd, 2), dx[2]));
  for (std::size_t i = 0; i < alone.parameters(); ++i) {
    EXPECT_TRUE(same_bits(together.gradients(i), alone.gradients(i)));
  }
}

// Weight gradients come long after, behind other micro-batches' passes.
TEST_P(SequenceTest, SplitEqualsJoined) {
  auto joined = make({.slots = 2});
  auto split = make({.slots = 2, .split = BackwardSplit::kSplit});
  const auto dy = test::random_values(joined.plan().output.elements(), 2);
  joined.forward(input(3), Mode::kTraining, 0);
  const auto dx = joined.backward(dy, GradientMode::kStore, 0);
  const auto first = joined.all_gradients();
  joined.forward(input(4), Mode::kTraining, 1);
  const auto other = joined.backward(dy, GradientMode::kAdd, 1);

  using Part = PlannedLayer::Part;
  split.forward(input(3), Mode::kTraining, 0);
  split.forward(input(4), Mode::kTraining, 1);
  EXPECT_TRUE(same_bits(split.backward(dy, GradientMode::kStore, 0, Part::kInput), dx));
  EXPECT_TRUE(same_bits(split.backward(dy, GradientMode::kStore, 1, Part::kInput), other));
  split.backward(dy, GradientMode::kStore, 0, Part::kWeights);
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(same_bits(split.gradients(i), first[i])) << i;
  split.backward(dy, GradientMode::kAdd, 1, Part::kWeights);
  for (std::size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(same_bits(split.gradients(i), joined.gradients(i))) << i;
  }
}

TEST_P(SequenceTest, AllocatesNothingAndNeedsNoInputGradient) {
  auto sequence = make({});
  const auto dy = test::random_values(sequence.plan().output.elements(), 2);
  sequence.forward(input(5));
  sequence.backward(dy);
  const auto with = sequence.all_gradients();
  const auto before = allocation_count();
  sequence.wants_input_gradient = false;
  sequence.forward(input(5));
  sequence.backward(dy);
  EXPECT_EQ(allocation_count(), before);
  for (std::size_t i = 0; i < with.size(); ++i) EXPECT_TRUE(same_bits(sequence.gradients(i), with[i]));
}

INSTANTIATE_TEST_SUITE_P(Networks, SequenceTest, testing::Range<std::size_t>(0, networks().size()));

TEST(Sequence, MatchesDifferences) {
  auto mlp = planned<Sequence>(Shape{3, 6}, {},
                               chain(std::make_unique<Linear>(6, 5), std::make_unique<GELU>(), drop(),
                                     std::make_unique<Linear>(5, 4), std::make_unique<Sigmoid>()));
  EXPECT_LT(test::gradient_error(mlp, test::random_values(18, 1)), tolerance::kFiniteDifference);
  std::vector<std::vector<NamedLayer>> branches;
  branches.push_back(chain(conv(2, 2), std::make_unique<Tanh>()));
  branches.push_back(chain(std::make_unique<AvgPool2d>(PoolOptions{3, 1, 1})));
  auto composites = planned<Sequence>(
      Shape{2, 3, 4, 2}, {},
      chain(std::make_unique<Residual>(chain(conv(2, 2), std::make_unique<GELU>()), chain(conv(2, 2)),
                                       FinalActivation::kNone),
            std::make_unique<Concat>(std::move(branches)), std::make_unique<GlobalAvgPool>()));
  EXPECT_LT(test::gradient_error(composites, test::random_values(48, 2, 0.5F)), tolerance::kFiniteDifference);
}

// Counts its backwards, and those that are asked for an input gradient.
struct Backwards {
  int calls = 0, with_input_gradient = 0;
};
template <typename L>
class Counting final : public Layer {
 public:
  Counting(L layer, Backwards& counted) : layer_(std::move(layer)), counted_(counted) {}
  std::string describe() const override { return layer_.describe(); }
  std::vector<Parameter> parameters() const override { return layer_.parameters(); }
  LayerPlan plan(Device device, int threads, const Shape& input) override {
    return layer_.plan(device, threads, input);
  }
  void forward(const ForwardContext& context) const override { layer_.forward(context); }
  void backward_input(const BackwardContext& context) const override {
    ++counted_.calls;
    if (context.input_gradient.there()) ++counted_.with_input_gradient;
    layer_.backward_input(context);
  }
  void backward_weights(const BackwardContext& context) const override { layer_.backward_weights(context); }

 private:
  L layer_;
  Backwards& counted_;
};

TEST(Sequence, MakesNoGradientThatNobodyWants) {
  for (const BackwardSplit split : {BackwardSplit::kJoined, BackwardSplit::kSplit}) {
    Backwards flat, first, second;
    auto sequence = planned<Sequence>(Shape{2, 3, 3, 2}, {.split = split},
                                      chain(std::make_unique<Counting<Flatten>>(Flatten(), flat),
                                            std::make_unique<Counting<Linear>>(Linear(18, 6), first),
                                            std::make_unique<Counting<Linear>>(Linear(6, 3), second)));
    const auto dy = test::random_values(6, 1);
    const auto backward = [&] {
      using Part = PlannedLayer::Part;
      if (split == BackwardSplit::kJoined) return static_cast<void>(sequence.backward(dy));
      sequence.backward(dy, GradientMode::kStore, 0, Part::kInput);
      sequence.backward(dy, GradientMode::kStore, 0, Part::kWeights);
    };
    sequence.wants_input_gradient = false;
    sequence.forward(test::random_values(36, 2));
    backward();
    EXPECT_EQ(flat.calls, 0);
    EXPECT_EQ(first.calls, 1);
    EXPECT_EQ(first.with_input_gradient, 0);
    EXPECT_EQ(second.with_input_gradient, 1);
    sequence.wants_input_gradient = true;
    backward();
    EXPECT_EQ(flat.with_input_gradient, 1);
    EXPECT_EQ(first.with_input_gradient, 1);
  }
}

TEST(Sequence, PrefixesTheNamesOfItsLayers) {
  std::vector<NamedLayer> inner;
  inner.push_back({"conv1", conv(4, 4)});
  inner.push_back({"bn1", norm(4)});
  std::vector<NamedLayer> shortcut;
  shortcut.push_back({"downsample.0", conv(4, 4)});
  std::vector<NamedLayer> outer;
  outer.push_back({"layer1.0", std::make_unique<Residual>(std::move(inner), std::move(shortcut))});
  outer.push_back({"", norm(4)});
  const Sequence sequence(std::move(outer));
  std::vector<std::string> names;
  for (const Parameter& parameter : sequence.parameters()) names.push_back(parameter.name);
  for (const State& state : sequence.states()) names.push_back(state.name);
  EXPECT_EQ(names, (std::vector<std::string>{"layer1.0.conv1.weight", "layer1.0.bn1.weight",
                                             "layer1.0.bn1.bias", "layer1.0.downsample.0.weight", "weight",
                                             "bias", "layer1.0.bn1.running_mean", "layer1.0.bn1.running_var",
                                             "running_mean", "running_var"}));
  EXPECT_EQ(sequence.random_layers(), 4);
}

TEST(Sequence, KeepsOnlyWhatBackwardReads) {
  const Shape shape{2, 64};
  const std::size_t boundary = 2 * 64 * sizeof(float);
  auto drops = planned<Sequence>(shape, {}, chain(drop(), drop(), drop()));
  EXPECT_EQ(drops.plan().stash_bytes, 0U);
  EXPECT_EQ(drops.plan().needs, Needs::kNothing);
  auto relus = planned<Sequence>(
      shape, {}, chain(std::make_unique<Linear>(64, 64), drop(), relu(), std::make_unique<Linear>(64, 64)));
  EXPECT_EQ(relus.plan().stash_bytes, boundary) << "linear, dropout and relu share one";
  auto block = planned<Residual>(shape, {}, chain(std::make_unique<Linear>(64, 64)));
  EXPECT_EQ(block.plan().stash_bytes, 0U) << "its output and input are the caller's";
}

TEST(Sequence, NamesTheLayerAndShapesThatDoNotFit) {
  Sequence sequence(chain(norm(4), norm(5)));
  try {
    sequence.plan(Device::host(), 1, {2, 3, 3, 4});
    FAIL();
  } catch (const std::invalid_argument& error) {
    const std::string what = error.what();
    for (const char* part : {"'1'", "batch norm 5", "2x3x3x4"}) {
      EXPECT_NE(what.find(part), std::string::npos) << what;
    }
  }
  EXPECT_THROW(Sequence({}), std::invalid_argument);
  EXPECT_THROW(Residual(chain(conv(4, 6))).plan(Device::host(), 1, {1, 4, 4, 4}), std::invalid_argument);
  std::vector<std::vector<NamedLayer>> branches;
  branches.push_back(chain(relu()));
  branches.push_back(chain(std::make_unique<MaxPool2d>()));
  EXPECT_THROW(Concat(std::move(branches)).plan(Device::host(), 1, {1, 4, 4, 4}), std::invalid_argument);
}

TEST(Sequence, RefusesHalvesWhenJoined) {
  auto sequence = planned<Sequence>(Shape{1, 4}, {}, chain(relu(), drop()));
  sequence.forward({1, 2, 3, 4});
  EXPECT_THROW(sequence.backward({1, 1, 1, 1}, GradientMode::kStore, 0, PlannedLayer::Part::kInput),
               std::logic_error);
}

}  // namespace
}  // namespace pipeoptim
