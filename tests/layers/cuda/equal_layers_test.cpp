// Every layer on CUDA against the same layer on the host, whose results the other tests hold to references in
// double: output, input gradient, parameter gradients (stored, then added to) and states.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "layers/activation.h"
#include "layers/attention.h"
#include "layers/batch_norm.h"
#include "layers/concat.h"
#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/embedding.h"
#include "layers/flatten.h"
#include "layers/last_step.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/lstm.h"
#include "layers/pooling.h"
#include "layers/residual.h"
#include "tests/support/bf16.h"
#include "tests/support/layer_run.h"
#include "tests/support/making.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

template <typename T, typename... Arguments>
std::vector<NamedLayer> one(Arguments... arguments) {
  std::vector<NamedLayer> layers;
  layers.push_back({"layer", std::make_unique<T>(std::move(arguments)...)});
  return layers;
}

struct Case {
  std::string name;
  Shape input;
  std::function<LayerPtr()> make;
  MatrixPrecision precision = MatrixPrecision::kFp32;
  double tolerance = tolerance::kDeviceLayer;
};

void PrintTo(const Case& layer, std::ostream* to) { *to << layer.name; }

const BatchNormOptions kWithRelu{.activation = Activation::kRelu};
const PoolOptions kOverlapping{.kernel = 3, .stride = 2, .padding = 1};

LayerPtr make_residual() {  // no bias in front of the batch norm, where its gradient is 0 but for rounding
  std::vector<NamedLayer> body =
      one<Conv2d>(Conv2dOptions{.in = 8, .out = 16, .kernel = 3, .padding = 1, .bias = Bias::kNo});
  body.push_back({"bn", std::make_unique<BatchNorm2d>(16, kWithRelu)});
  return std::make_unique<Residual>(std::move(body),
                                    one<Conv2d>(Conv2dOptions{.in = 8, .out = 16, .kernel = 1}));
}

LayerPtr make_concat(std::int64_t first, std::int64_t second) {
  std::vector<std::vector<NamedLayer>> branches;
  branches.push_back(one<Conv2d>(Conv2dOptions{.in = 8, .out = first, .kernel = 1}));
  branches.push_back(one<Conv2d>(Conv2dOptions{.in = 8, .out = second, .kernel = 3, .padding = 1}));
  return std::make_unique<Concat>(std::move(branches));
}

const Shape kImages{4, 9, 10, 8};
const Shape kOddImages{4, 9, 10, 6};  // rows that do not allow accesses of 16 bytes

const Case kCases[] = {
    {"Linear", {33, 70}, making<Linear>(70, 19, LinearOptions{})},
    {"Conv2d", kImages, making<Conv2d>(Conv2dOptions{.in = 8, .out = 12, .kernel = 3, .padding = 1})},
    {"Conv2dStridedGroups", kImages,
     making<Conv2d>(Conv2dOptions{.in = 8, .out = 12, .kernel = 3, .stride = 2, .padding = 1, .groups = 4})},
    {"Conv2dDilated", kImages,
     making<Conv2d>(Conv2dOptions{.in = 8, .out = 4, .kernel = 3, .padding = 2, .dilation = 2})},
    {"BatchNorm2d", kImages, making<BatchNorm2d>(8)},
    {"BatchNorm2dRelu", {5, 17, 3, 70}, making<BatchNorm2d>(70, kWithRelu)},
    {"BatchNorm2dCudnn", kImages, making_by_cudnn<BatchNorm2d>(8)},
    {"BatchNorm2dReluCudnn", {5, 17, 3, 72}, making_by_cudnn<BatchNorm2d>(72, kWithRelu)},
    {"BatchNorm2dRowsCudnn", {260, 64}, making_by_cudnn<BatchNorm2d>(64, kWithRelu)},
    {"BatchNorm2dOddCudnn", kOddImages, making_by_cudnn<BatchNorm2d>(6)},
    {"ReLU", kImages, making<ReLU>()},
    {"GELU", kImages, making<GELU>()},
    {"GELUTanh", kImages, making<GELU>(GeluForm::kTanh)},
    {"Tanh", kImages, making<Tanh>()},
    {"Sigmoid", {3, 1001}, making<Sigmoid>()},
    {"MaxPool2d", kImages, making<MaxPool2d>()},
    {"MaxPool2dOverlapping", kImages, making<MaxPool2d>(kOverlapping)},
    {"AvgPool2d", kImages, making<AvgPool2d>(kOverlapping)},
    {"GlobalAvgPool", kImages, making<GlobalAvgPool>()},
    {"MaxPool2dCudnn", kImages, making_by_cudnn<MaxPool2d>()},
    {"MaxPool2dOverlappingCudnn", kImages, making_by_cudnn<MaxPool2d>(kOverlapping)},
    {"AvgPool2dCudnn", kImages, making_by_cudnn<AvgPool2d>(kOverlapping)},
    {"GlobalAvgPoolCudnn", kImages, making_by_cudnn<GlobalAvgPool>()},
    {"MaxPool2dOddCudnn", kOddImages, making_by_cudnn<MaxPool2d>()},
    {"Flatten", kImages, making<Flatten>()},
    {"Dropout", kImages, making<Dropout>(0.3)},
    {"Residual", kImages, make_residual},
    {"Concat", kImages, [] { return make_concat(4, 12); }},
    {"LinearInPacks", {33, 70}, making<Linear>(70, 20, LinearOptions{})},
    {"LinearRelu", {33, 70}, making<Linear>(70, 19, LinearOptions{.activation = Activation::kRelu})},
    {"BatchNorm2dOdd", kOddImages, making<BatchNorm2d>(6)},
    {"MaxPool2dOdd", kOddImages, making<MaxPool2d>()},
    {"AvgPool2dOdd", kOddImages, making<AvgPool2d>(kOverlapping)},
    {"GlobalAvgPoolOdd", kOddImages, making<GlobalAvgPool>()},
    {"DropoutOdd", {3, 77}, making<Dropout>(0.3)},
    {"ConcatOdd", kImages, [] { return make_concat(3, 8); }},
    // Random inputs are tokens, too: those below 0 are the first one, those between two the lower.
    {"Embedding", {4, 70}, making<Embedding>(EmbeddingOptions{.vocabulary = 9, .features = 24})},
    {"EmbeddingOdd", {4, 70}, making<Embedding>(EmbeddingOptions{.vocabulary = 3, .features = 7})},
    {"EmbeddingWide", {2, 300}, making<Embedding>(EmbeddingOptions{.vocabulary = 40, .features = 516})},
    {"PositionEmbedding",
     {3, 11, 8},
     making<PositionEmbedding>(PositionEmbeddingOptions{.positions = 12, .features = 8})},
    {"LayerNorm", {3, 11, 24}, making<LayerNorm>(24)},
    {"LayerNormOdd", {37, 7}, making<LayerNorm>(7)},
    {"LayerNormWide", {5, 1028}, making<LayerNorm>(1028)},
    {"Attention", {3, 20, 24}, making<CausalSelfAttention>(AttentionOptions{.features = 24, .heads = 4})},
    {"AttentionOdd", {2, 33, 6}, making<CausalSelfAttention>(AttentionOptions{.features = 6, .heads = 2})},
    {"AttentionInBlocks",
     {2, 600, 8},
     making<CausalSelfAttention>(AttentionOptions{.features = 8, .heads = 2})},
    {"Lstm", {5, 7, 12}, making<Lstm>(12, 8)},
    {"LstmOdd", {3, 9, 5}, making<Lstm>(5, 7)},
    {"LastStep", {3, 5, 8}, making<LastStep>()},
    {"LastStepOdd", {3, 5, 7}, making<LastStep>()},
    // The factors of one product are the same bits; behind another one they may be neighbours.
    {"LinearBf16", {33, 72}, making<Linear>(72, 24, LinearOptions{}), MatrixPrecision::kBf16},
    {"LinearOddBf16", {33, 70}, making<Linear>(70, 19, LinearOptions{}), MatrixPrecision::kBf16},
    {"Conv2dBf16", kImages, making<Conv2d>(Conv2dOptions{.in = 8, .out = 16, .kernel = 3, .padding = 1}),
     MatrixPrecision::kBf16, tolerance::kBf16Result},
    {"Conv2dStridedBf16", kImages,
     making<Conv2d>(Conv2dOptions{.in = 8, .out = 16, .kernel = 1, .stride = 2, .bias = Bias::kNo}),
     MatrixPrecision::kBf16, tolerance::kBf16Result},
    {"Conv2dOddBf16",
     {4, 9, 10, 3},
     making<Conv2d>(Conv2dOptions{.in = 3, .out = 6, .kernel = 3}),
     MatrixPrecision::kBf16,
     tolerance::kBf16Result},
    {"Conv2dGroupsBf16", kImages,
     making<Conv2d>(Conv2dOptions{.in = 8, .out = 12, .kernel = 3, .stride = 2, .padding = 1, .groups = 4}),
     MatrixPrecision::kBf16, tolerance::kBf16Result},
    {"AttentionBf16",
     {3, 20, 32},
     making<CausalSelfAttention>(AttentionOptions{.features = 32, .heads = 4}),
     MatrixPrecision::kBf16,
     tolerance::kBf16Layer},
    {"AttentionOddBf16",
     {2, 259, 6},
     making<CausalSelfAttention>(AttentionOptions{.features = 6, .heads = 2}),
     MatrixPrecision::kBf16,
     tolerance::kBf16Layer},
    {"LstmBf16", {5, 7, 16}, making<Lstm>(16, 8), MatrixPrecision::kBf16, tolerance::kBf16Layer}};

// The largest difference, relative to the largest value.
void expect_close(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance,
                  const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = 0;
  double error = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << what << ' ' << i;
    largest = std::max(largest, std::fabs(static_cast<double>(expected[i])));
    error = std::max(error, std::fabs(static_cast<double>(actual[i]) - static_cast<double>(expected[i])));
  }
  EXPECT_LE(error, tolerance * largest) << what;
}

class CudaLayers : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
    const bool rounds = GetParam().precision == MatrixPrecision::kBf16;
    if (rounds && !multiplies_bf16(Device::host())) GTEST_SKIP() << "no bf16 on the host";
  }
};

TEST_P(CudaLayers, EqualTheHosts) {
  const LayerPtr on_host = GetParam().make();
  const LayerPtr on_cuda = GetParam().make();
  for (const LayerPtr& layer : {std::cref(on_host), std::cref(on_cuda)}) {
    layer->set_precision(GetParam().precision);
  }
  const double tolerance = GetParam().tolerance;
  LayerRun host(*on_host, GetParam().input, 1);
  LayerRun cuda(*on_cuda, GetParam().input, 1, Device::cuda(0));
  ASSERT_EQ(cuda.plan().output, host.plan().output);
  const std::vector<Parameter> parameters = on_host->parameters();
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const auto values = random_values(parameters[p].shape.elements(), 10 + static_cast<unsigned>(p), 0.5F);
    host.set_parameter(p, values);
    cuda.set_parameter(p, values);
  }
  const std::vector<float> x = random_values(GetParam().input.elements(), 1);
  const std::vector<float> dy = random_values(host.plan().output.elements(), 2);
  expect_close(cuda.forward(x), host.forward(x), tolerance, "output");
  for (const GradientMode mode : {GradientMode::kStore, GradientMode::kAdd}) {
    expect_close(cuda.backward(dy, mode), host.backward(dy, mode), tolerance, "input gradient");
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      expect_close(cuda.gradient(p), host.gradient(p), tolerance, parameters[p].name.c_str());
    }
  }
  for (std::size_t s = 0; s < on_host->states().size(); ++s)
    expect_close(cuda.state(s), host.state(s), tolerance, "state");
}

INSTANTIATE_TEST_SUITE_P(All, CudaLayers, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<Case>& test) { return test.param.name; });

}  // namespace
}  // namespace pipeoptim::test
