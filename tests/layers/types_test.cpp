// Tensors in bf16: a layer given them computes what it computes of the same values in fp32, and rounds what
// it stores; and which layers of a chain get them.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "layers/activation.h"
#include "layers/attention.h"
#include "layers/batch_norm.h"
#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/embedding.h"
#include "layers/flatten.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/pooling.h"
#include "layers/residual.h"
#include "layers/sequence.h"
#include "tests/support/backends.h"
#include "tests/support/bf16.h"
#include "tests/support/layer_run.h"
#include "tests/support/making.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

constexpr ElementType kFp32 = ElementType::kFp32, kBf16 = ElementType::kBf16;
constexpr ElementTypes kBoth{kBf16, kBf16}, kNone{kFp32, kFp32};

// What may lie between a result and that of fp32 tensors.
enum class Differs {
  kByRounding,   // one rounding of the same bits
  kByLastBits,   // one rounding, of sums in another order
  kFromHosts,    // the same; from the host's, as cuDNN may round a product to bf16 wherever it is stored
  kByItsInside,  // tensors inside are rounded, too
};

struct Case {
  std::string name;
  Shape input;
  std::function<LayerPtr()> make;
  Differs differs = Differs::kByRounding;
  ElementTypes types = kBoth;
};

// No ReLU behind the sum, where a last bit may decide, and no bias in front of batch norm: its gradient is 0.
LayerPtr make_residual(std::int64_t out) {
  const Conv2dOptions conv{.in = 8, .out = out, .kernel = 3, .padding = 1, .bias = Bias::kNo};
  std::vector<NamedLayer> body, shortcut;
  body.push_back({"conv", std::make_unique<Conv2d>(conv)});
  body.push_back({"bn", std::make_unique<BatchNorm2d>(out)});
  if (out != 8) shortcut.push_back({"conv", std::make_unique<Conv2d>(Conv2dOptions{.in = 8, .out = out})});
  return std::make_unique<Residual>(std::move(body), std::move(shortcut), FinalActivation::kNone);
}

// Nothing is rounded inside.
LayerPtr make_sum() {
  std::vector<NamedLayer> body;
  body.push_back({"relu", std::make_unique<ReLU>()});
  return std::make_unique<Residual>(std::move(body));
}

const Shape kImages{4, 9, 10, 8};
const Shape kOddImages{4, 9, 10, 7};
const PoolOptions kOverlapping{.kernel = 3, .stride = 2, .padding = 1};

const Case kCases[] = {
    {"ReLU", kImages, making<ReLU>()},
    {"GELU", {3, 1001}, making<GELU>()},
    {"GELUVectors", {3, 1008}, making<GELU>(), Differs::kByLastBits},
    // Their backward reads an output that is rounded.
    {"Tanh", kImages, making<Tanh>(), Differs::kByItsInside},
    {"Sigmoid", kImages, making<Sigmoid>(), Differs::kByItsInside},
    {"BatchNorm2d", kImages, making<BatchNorm2d>(8)},
    {"BatchNorm2dRelu",
     {5, 17, 3, 70},
     making<BatchNorm2d>(70, BatchNormOptions{.activation = Activation::kRelu})},
    {"BatchNorm2dCudnn", {16, 32, 32, 16}, making_by_cudnn<BatchNorm2d>(16), Differs::kByLastBits},
    {"BatchNorm2dReluCudnn",
     {16, 32, 32, 16},
     making_by_cudnn<BatchNorm2d>(16, BatchNormOptions{.activation = Activation::kRelu}),
     Differs::kByLastBits},
    {"BatchNorm2dOdd", kOddImages, making<BatchNorm2d>(7)},
    {"MaxPool2d", kImages, making<MaxPool2d>(kOverlapping)},
    {"MaxPool2dCudnn", kImages, making_by_cudnn<MaxPool2d>(kOverlapping), Differs::kByLastBits},
    {"AvgPool2d", kOddImages, making<AvgPool2d>(kOverlapping)},
    {"AvgPool2dCudnn", kImages, making_by_cudnn<AvgPool2d>(kOverlapping), Differs::kByLastBits},
    {"GlobalAvgPool", kImages, making<GlobalAvgPool>()},
    {"GlobalAvgPoolCudnn", {4, 8, 8, 64}, making_by_cudnn<GlobalAvgPool>(), Differs::kByLastBits},
    {"Flatten", kImages, making<Flatten>()},
    {"Dropout", {3, 77}, making<Dropout>(0.3)},
    {"LayerNorm", {3, 11, 24}, making<LayerNorm>(24)},
    {"LayerNormOut", {37, 7}, making<LayerNorm>(7), Differs::kByRounding, {kFp32, kBf16}},
    {"Linear", {33, 70}, making<Linear>(70, 19), Differs::kFromHosts},
    {"LinearRelu",
     {33, 72},
     making<Linear>(72, 16, LinearOptions{.activation = Activation::kRelu}),
     Differs::kFromHosts},
    {"LinearIn", {33, 70}, making<Linear>(70, 19), Differs::kFromHosts, {kBf16, kFp32}},
    {"LinearOut", {33, 70}, making<Linear>(70, 19), Differs::kFromHosts, {kFp32, kBf16}},
    {"Conv2d", kImages, making<Conv2d>(Conv2dOptions{.in = 8, .out = 16, .kernel = 3, .padding = 1}),
     Differs::kFromHosts},
    {"Conv2dSmallImage",
     {5, 2, 2, 32},
     making<Conv2d>(Conv2dOptions{.in = 32, .out = 16, .kernel = 3, .padding = 1}),
     Differs::kFromHosts},
    {"Conv2dOdd",
     {4, 9, 10, 3},
     making<Conv2d>(Conv2dOptions{.in = 3, .out = 6, .kernel = 3, .stride = 2}),
     Differs::kFromHosts},
    {"Conv2dOut",
     kImages,
     making<Conv2d>(Conv2dOptions{.in = 8, .out = 12}),
     Differs::kFromHosts,
     {kFp32, kBf16}},
    {"Attention",
     {3, 20, 24},
     making<CausalSelfAttention>(AttentionOptions{.features = 24, .heads = 4}),
     Differs::kByLastBits},
    {"AttentionWide",
     {3, 20, 32},
     making<CausalSelfAttention>(AttentionOptions{.features = 32, .heads = 2}),
     Differs::kByLastBits},
    {"ResidualSum", kImages, make_sum},
    {"Residual", kImages, [] { return make_residual(8); }, Differs::kByItsInside},
    {"ResidualShortcut", kImages, [] { return make_residual(12); }, Differs::kByItsInside},
};

using Parameters = std::tuple<Backend, Case>;

class Types : public testing::TestWithParam<Parameters> {
 protected:
  Device device() const { return {std::get<0>(GetParam()), 0}; }
  const Case& given() const { return std::get<1>(GetParam()); }
  void SetUp() override {
    if (device_count(device().backend) == 0) GTEST_SKIP() << "no CUDA device";
    if (!multiplies_bf16(device())) GTEST_SKIP() << "no bf16";
    if (given().differs == Differs::kFromHosts && !multiplies_bf16(Device::host())) {
      GTEST_SKIP() << "no bf16 on the host";
    }
  }

  struct Results {
    std::vector<float> output, input_gradient;
    std::vector<std::vector<float>> gradients;
    ElementTypes types;
  };
  // Of inputs and output gradients that bf16 holds exactly.
  Results run(const ElementTypes& offered, BackwardSplit split = BackwardSplit::kJoined) const {
    return run(device(), offered, split);
  }
  Results run(Device on, const ElementTypes& offered, BackwardSplit split) const {
    const LayerPtr layer = given().make();
    layer->set_precision(MatrixPrecision::kBf16);
    layer->set_backward_split(split);
    LayerRun run(*layer, given().input, 1, on, offered);
    const std::vector<Parameter> parameters = layer->parameters();
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      run.set_parameter(p,
                        random_values(parameters[p].shape.elements(), 10 + static_cast<unsigned>(p), 0.5F));
    }
    run.gradients_apart = split == BackwardSplit::kSplit;
    Results results;
    results.types = run.types();
    results.output = run.forward(nearest_bf16(random_values(given().input.elements(), 1)));
    results.input_gradient = run.backward(nearest_bf16(random_values(run.plan().output.elements(), 2)));
    for (std::size_t p = 0; p < parameters.size(); ++p) results.gradients.push_back(run.gradient(p));
    return results;
  }

  // Only the same bits are rounded to the same value; what differs before may end at the two neighbours of
  // the expected one, which are half a last bit from it, and a whole one apart.
  void expect(const std::vector<float>& values, std::vector<float> expected, ElementType type,
              const std::string& what) const {
    const bool rounds = type == kBf16 && given().differs == Differs::kByRounding;
    if (rounds) expected = nearest_bf16(std::move(expected));
    ASSERT_EQ(values.size(), expected.size());
    float largest = 0;
    for (const float value : expected) largest = std::max(largest, std::abs(value));
    double bound = 0;
    if (given().differs == Differs::kByLastBits || given().differs == Differs::kFromHosts) {
      bound = tolerance::kBf16Result;
    }
    if (given().differs == Differs::kByItsInside) bound = tolerance::kBf16Layer;
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], expected[i], bound * static_cast<double>(largest)) << what << ' ' << i;
    }
  }
};

TEST_P(Types, AreRoundedWhereTheyAreStored) {
  const Device reference = given().differs == Differs::kFromHosts ? Device::host() : device();
  const Results fp32 = run(reference, kNone, BackwardSplit::kJoined), bf16 = run(given().types);
  EXPECT_EQ(fp32.types, kNone);
  ASSERT_EQ(bf16.types, given().types);
  expect(bf16.output, fp32.output, bf16.types.output, "output");
  expect(bf16.input_gradient, fp32.input_gradient, bf16.types.input, "input gradient");
  for (std::size_t p = 0; p < fp32.gradients.size(); ++p) {
    expect(bf16.gradients[p], fp32.gradients[p], kFp32, "gradient " + std::to_string(p));
  }
}

TEST_P(Types, AreTheSameWhereGradientsComeApart) {
  const Results together = run(given().types), apart = run(given().types, BackwardSplit::kSplit);
  EXPECT_EQ(apart.output, together.output);
  EXPECT_EQ(apart.input_gradient, together.input_gradient);
  EXPECT_EQ(apart.gradients, together.gradients);
}

std::string case_name(const testing::TestParamInfo<Parameters>& test) {
  return backend_prefix(std::get<0>(test.param)) + std::get<1>(test.param).name;
}
INSTANTIATE_TEST_SUITE_P(Layers, Types,
                         testing::Combine(testing::ValuesIn(built_backends()), testing::ValuesIn(kCases)),
                         case_name);

class Chain {
 public:
  template <typename T, typename... Arguments>
  Chain& then(Arguments... arguments) {
    owned_.push_back(std::make_unique<T>(arguments...));
    return *this;
  }
  std::vector<ElementType> types(MatrixPrecision precision) const {
    std::vector<Layer*> layers;
    for (const LayerPtr& layer : owned_) layers.push_back(layer.get());
    return agree_on_types(layers, precision, kNone);
  }

 private:
  std::vector<LayerPtr> owned_;
};

using Expected = std::vector<ElementType>;

TEST(Chain, HasBf16BetweenProducts) {
  Chain chain;
  chain.then<Linear>(8, 8).then<ReLU>().then<Linear>(8, 8);
  EXPECT_EQ(chain.types(MatrixPrecision::kBf16), (Expected{kFp32, kBf16, kBf16, kFp32}));
  EXPECT_EQ(chain.types(MatrixPrecision::kFp32), Expected(4, kFp32));
  EXPECT_EQ(chain.types(MatrixPrecision::kTf32), Expected(4, kFp32));
}

TEST(Chain, KeepsFp32WhereANeighbourNeedsIt) {
  Chain chain;
  chain.then<ReLU>().then<Linear>(8, 8).then<ReLU>().then<PositionEmbedding>(
      PositionEmbeddingOptions{.positions = 4, .features = 8});
  EXPECT_EQ(chain.types(MatrixPrecision::kBf16), Expected(5, kFp32));
}

class AlwaysBf16 final : public Layer {
 public:
  std::string describe() const override { return "always bf16"; }
  ElementTypes choose_types(ElementTypes) override { return kBoth; }
  LayerPlan plan(Device, int, const Shape&) override { return {}; }
  void forward(const ForwardContext&) const override {}
  void backward_input(const BackwardContext&) const override {}
};

TEST(Chain, RefusesWhatWasNotOffered) {
  Chain chain;
  chain.then<AlwaysBf16>();
  EXPECT_THROW(chain.types(MatrixPrecision::kBf16), std::logic_error);
}

TEST(Chain, RoundsBehindALayerNorm) {
  Chain chain;
  chain.then<LayerNorm>(8).then<Linear>(8, 8).then<GELU>().then<LayerNorm>(8);
  EXPECT_EQ(chain.types(MatrixPrecision::kBf16), Expected({kFp32, kBf16, kFp32, kFp32, kFp32}));
}

}  // namespace
}  // namespace pipeoptim::test
