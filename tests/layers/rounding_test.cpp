// Factors in bf16: how they are rounded, and that a layer computes the same whether it or somebody before it
// rounds its weights.
#include "layers/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "layers/attention.h"
#include "layers/conv2d.h"
#include "layers/linear.h"
#include "layers/lstm.h"
#include "tests/support/backends.h"
#include "tests/support/bf16.h"
#include "tests/support/layer_run.h"

namespace pipeoptim::test {
namespace {

using Rounding = BackendTest;

TEST_P(Rounding, IsToTheNearestValue) {
  for (const std::int64_t count : {1, 7, 64, 20001}) {  // in packs, behind them, on several threads
    std::vector<float> values = random_values(count, 3);
    values[0] = 1.0F + 0x1p-8F;  // a tie
    const auto from = on_device(values);
    Buffer<Bf16> rounded(device(), values.size());
    Buffer<float> widened(device(), values.size());
    Stream stream(device(), {.threads = 2});
    round_to_bf16(stream, count, from.data(), rounded.data());
    widen_bf16(stream, count, rounded.data(), widened.data());
    stream.synchronize();
    EXPECT_EQ(on_host(widened), nearest_bf16(values));
  }
}

TEST_P(Rounding, KeepsWhatIsNoNumber) {
  const auto from = on_device<float>({std::numeric_limits<float>::quiet_NaN(), -INFINITY, 3.4e38F});
  Buffer<Bf16> rounded(device(), 3);
  Stream stream(device());
  round_to_bf16(stream, 3, from.data(), rounded.data());
  stream.synchronize();
  const auto values = on_host(rounded);
  EXPECT_TRUE(std::isnan(to_float(values[0])));
  EXPECT_EQ(to_float(values[1]), -INFINITY);
  EXPECT_EQ(to_float(values[2]), INFINITY);  // above the largest
}

struct Results {
  std::vector<std::vector<float>> all;
  bool operator==(const Results&) const = default;
};

class RoundedWeights : public testing::TestWithParam<std::tuple<Backend, std::string>> {
 protected:
  Device device() const { return {std::get<0>(GetParam()), 0}; }
  void SetUp() override {
    if (device_count(device().backend) == 0) GTEST_SKIP() << "no CUDA device";
    if (!multiplies_bf16(device())) GTEST_SKIP() << "no bf16";
  }

  LayerPtr make() const {
    const std::string& name = std::get<1>(GetParam());
    LayerPtr layer;
    if (name == "Linear") layer = std::make_unique<Linear>(70, 19);
    if (name == "LinearRelu")
      layer = std::make_unique<Linear>(70, 16, LinearOptions{.activation = Activation::kRelu});
    if (name == "Conv2d")
      layer = std::make_unique<Conv2d>(Conv2dOptions{.in = 8, .out = 16, .kernel = 3, .padding = 1});
    if (name == "Attention")
      layer = std::make_unique<CausalSelfAttention>(AttentionOptions{.features = 24, .heads = 4});
    if (name == "Lstm") layer = std::make_unique<Lstm>(12, 8);
    layer->set_precision(MatrixPrecision::kBf16);
    return layer;
  }
  Shape input() const {
    const std::string& name = std::get<1>(GetParam());
    if (name.starts_with("Linear")) return {33, 70};
    if (name == "Conv2d") return {3, 9, 10, 8};
    return name == "Attention" ? Shape{3, 20, 24} : Shape{5, 9, 12};
  }

  enum class Give { kValues, kRounded };
  enum class Gradients { kTogether, kApart };
  // All results of a forward and of two backwards whose weight gradients add up.
  Results run(Give give, Gradients gradients) const {
    const LayerPtr layer = make();
    if (gradients == Gradients::kApart) layer->set_backward_split(BackwardSplit::kSplit);
    LayerRun run(*layer, input(), 1, device());
    const std::vector<Parameter> parameters = layer->parameters();
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto values = random_values(parameters[p].shape.elements(), 10 + static_cast<unsigned>(p), 0.5F);
      run.set_parameter(p, values);
      if (give == Give::kRounded && parameters[p].may_be_rounded) run.give_rounded(p, bf16_copy(values));
    }
    run.gradients_apart = gradients == Gradients::kApart;
    Results results;
    results.all.push_back(run.forward(random_values(input().elements(), 1)));
    for (const GradientMode mode : {GradientMode::kStore, GradientMode::kAdd}) {
      results.all.push_back(run.backward(random_values(run.plan().output.elements(), 2), mode));
    }
    for (std::size_t p = 0; p < parameters.size(); ++p) results.all.push_back(run.gradient(p));
    return results;
  }
};

TEST_P(RoundedWeights, AreWhatTheLayerMakesOfThem) {
  const Results own = run(Give::kValues, Gradients::kTogether);
  for (const auto& values : own.all) {
    for (const float value : values) ASSERT_TRUE(std::isfinite(value));
  }
  EXPECT_EQ(run(Give::kRounded, Gradients::kTogether), own);
  EXPECT_EQ(run(Give::kRounded, Gradients::kApart), own);
}

INSTANTIATE_TEST_SUITE_P(Backends, Rounding, testing::ValuesIn(built_backends()), backend_name);

// A layer of CUDA is also held to the host's in cuda/equal_layers_test.cpp.
const auto kLayers = testing::Values(std::string("Linear"), std::string("LinearRelu"), std::string("Conv2d"),
                                     std::string("Attention"), std::string("Lstm"));
std::string layer_name(const testing::TestParamInfo<std::tuple<Backend, std::string>>& info) {
  return backend_prefix(std::get<0>(info.param)) + std::get<1>(info.param);
}
INSTANTIATE_TEST_SUITE_P(Layers, RoundedWeights,
                         testing::Combine(testing::ValuesIn(built_backends()), kLayers), layer_name);

TEST(RoundedWeight, IsRefusedByOtherPrecisions) {
  Stream stream(Device::host(), {.threads = 1});
  const Bf16 rounded{};
  const auto linear = make_linear(Device::host(), 1, {.rows = 1, .in = 1, .out = 1});
  EXPECT_THROW(linear->forward(stream, {.weights = {nullptr, &rounded}}, nullptr), std::invalid_argument);
  EXPECT_THROW(linear->backward_input(stream, {.weights = {nullptr, &rounded}}, nullptr),
               std::invalid_argument);
  const auto convolution = make_convolution(Device::host(), 1, {.input = {1, 4, 4, 8}, .out_channels = 8});
  EXPECT_THROW(convolution->forward(stream, {.weights = {nullptr, &rounded}}, nullptr),
               std::invalid_argument);
  EXPECT_THROW(convolution->backward_data(stream, {.weights = {nullptr, &rounded}}, nullptr),
               std::invalid_argument);
}

TEST(MatrixPrecision, HasNames) {
  EXPECT_EQ(matrix_precision("fp32"), MatrixPrecision::kFp32);
  EXPECT_EQ(matrix_precision("tf32"), MatrixPrecision::kTf32);
  EXPECT_EQ(matrix_precision("bf16"), MatrixPrecision::kBf16);
  EXPECT_THROW(matrix_precision("fp8"), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim::test
