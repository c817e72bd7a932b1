// Convolution plans on CUDA against the host's, whose layers the other tests hold to loops in double: every
// direction, results written and added to, in workspaces of exactly the size that was asked for.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/error.h"
#include "layers/provider.h"
#include "tests/support/layer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

using Values = std::vector<float>;

std::size_t weights_of(const ConvolutionSpec& spec) {
  return static_cast<std::size_t>(convolution_weights(spec));
}
std::size_t values_of(const Shape& shape) { return static_cast<std::size_t>(shape.elements()); }

// Operands on a device, filled with the same values on each. Results begin as garbage.
class Operands {
 public:
  Operands(Device device, const ConvolutionSpec& spec)
      : input_(filled(device, values_of(spec.input), 1)),
        weights_(filled(device, weights_of(spec), 2)),
        bias_(filled(device, static_cast<std::size_t>(spec.out_channels), 3)),
        output_gradient_(filled(device, values_of(convolution_output(spec)), 4)),
        output_(garbage(device, values_of(convolution_output(spec)))),
        input_gradient_(garbage(device, values_of(spec.input))),
        weight_gradient_(garbage(device, weights_of(spec))),
        has_bias_(spec.bias) {}

  // Writes the weights' gradient, then adds it once more.
  void run(const ConvolutionPlan& plan, Stream& stream, std::byte* workspace) const {
    forward(plan, stream, output_.data(), workspace);
    plan.backward_data(stream,
                       {.weights = {weights_.data()},
                        .output_gradient = output_gradient_.data(),
                        .input_gradient = input_gradient_.data()},
                       workspace);
    for (const GradientMode mode : {GradientMode::kStore, GradientMode::kAdd}) {
      plan.backward_weights(stream,
                            {.input = input_.data(),
                             .output_gradient = output_gradient_.data(),
                             .weight_gradient = weight_gradient_.data(),
                             .mode = mode},
                            workspace);
    }
  }
  void forward(const ConvolutionPlan& plan, Stream& stream, float* output, std::byte* workspace) const {
    plan.forward(stream,
                 {.input = input_.data(),
                  .weights = {weights_.data()},
                  .bias = has_bias_ ? bias_.data() : nullptr,
                  .output = output},
                 workspace);
  }

  Values output() const { return read(output_); }
  Values input_gradient() const { return read(input_gradient_); }
  Values weight_gradient() const { return read(weight_gradient_); }

  static Values read(const Buffer<float>& from) {
    Values values(from.size());
    copy_to_host(values.data(), from.data(), values.size() * sizeof(float), from.device());
    return values;
  }

 private:
  static Buffer<float> holding(Device device, const Values& values) {
    Buffer<float> buffer(device, values.size());
    copy_from_host(buffer.data(), values.data(), values.size() * sizeof(float), device);
    return buffer;
  }
  static Buffer<float> filled(Device device, std::size_t count, unsigned seed) {
    return holding(device, random_values(static_cast<std::int64_t>(count), seed));
  }
  static Buffer<float> garbage(Device device, std::size_t count) {
    return holding(device, Values(count, 1e30F));
  }

  Buffer<float> input_, weights_, bias_, output_gradient_, output_, input_gradient_, weight_gradient_;
  bool has_bias_;
};

// A plan with a stream and a workspace of its own.
class PlanRun {
 public:
  PlanRun(Device device, const ConvolutionSpec& spec)
      : plan(make_convolution(device, 1, spec)),
        stream(device),
        workspace(device, plan->workspace_bytes()),
        operands(device, spec) {}

  void enqueue() { operands.run(*plan, stream, workspace.data()); }
  void finish() {
    enqueue();
    stream.synchronize();
  }

  std::unique_ptr<ConvolutionPlan> plan;
  Stream stream;
  Memory workspace;
  Operands operands;
};

// The largest difference, relative to the largest value.
void expect_close(const Values& actual, const Values& expected, double tolerance, const char* what) {
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

void expect_equal_runs(const PlanRun& actual, const PlanRun& expected, double tolerance) {
  expect_close(actual.operands.output(), expected.operands.output(), tolerance, "output");
  expect_close(actual.operands.input_gradient(), expected.operands.input_gradient(), tolerance,
               "input gradient");
  expect_close(actual.operands.weight_gradient(), expected.operands.weight_gradient(), tolerance,
               "weight gradient");
}

struct Case {
  const char* name;
  ConvolutionSpec spec;
};

void PrintTo(const Case& shape, std::ostream* to) { *to << describe(shape.spec); }

const Case kCases[] = {
    {"Plain", {.input = {3, 9, 10, 8}, .out_channels = 12, .kernel = 3, .padding = 1}},
    {"Bias", {.input = {3, 9, 10, 8}, .out_channels = 12, .kernel = 3, .padding = 1, .bias = true}},
    {"OddChannelsBias", {.input = {2, 7, 5, 3}, .out_channels = 5, .kernel = 3, .bias = true}},
    {"OneChannel", {.input = {2, 12, 11, 1}, .out_channels = 6, .kernel = 5, .padding = 2, .bias = true}},
    {"OnePixelKernel", {.input = {2, 6, 7, 16}, .out_channels = 8}},
    {"OnePixelStrided", {.input = {2, 7, 8, 6}, .out_channels = 10, .stride = 2}},
    // The last row and column of the input reach no output.
    {"StridedRest", {.input = {2, 10, 12, 4}, .out_channels = 8, .kernel = 3, .stride = 3, .bias = true}},
    {"Strided", {.input = {2, 11, 10, 4}, .out_channels = 8, .kernel = 3, .stride = 2, .padding = 1}},
    {"Dilated", {.input = {2, 11, 12, 4}, .out_channels = 6, .kernel = 3, .padding = 2, .dilation = 2}},
    {"DilatedStrided",
     {.input = {2, 13, 12, 4}, .out_channels = 6, .kernel = 3, .stride = 2, .dilation = 3, .bias = true}},
    {"Groups", {.input = {2, 8, 9, 12}, .out_channels = 8, .kernel = 3, .padding = 1, .groups = 4}},
    {"GroupsStridedDilatedBias",
     {.input = {2, 12, 13, 8},
      .out_channels = 12,
      .kernel = 3,
      .stride = 2,
      .padding = 2,
      .dilation = 2,
      .groups = 2,
      .bias = true}},
    {"Depthwise",
     {.input = {2, 9, 8, 6}, .out_channels = 6, .kernel = 3, .padding = 1, .groups = 6, .bias = true}},
    {"DepthwiseWider", {.input = {2, 9, 8, 4}, .out_channels = 8, .kernel = 3, .padding = 1, .groups = 4}},
    {"KernelIsTheInput", {.input = {4, 5, 5, 8}, .out_channels = 16, .kernel = 5, .bias = true}},
    {"PaddingBeyondTheKernel", {.input = {2, 4, 5, 4}, .out_channels = 4, .padding = 1, .bias = true}}};

class CudaConvolutionTest : public testing::Test {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
  }
};
class CudaConvolutionShapes : public CudaConvolutionTest, public testing::WithParamInterface<Case> {};

TEST_P(CudaConvolutionShapes, EqualTheHosts) {
  PlanRun host(Device::host(), GetParam().spec);
  PlanRun cuda(Device::cuda(0), GetParam().spec);
  host.finish();
  cuda.finish();
  expect_equal_runs(cuda, host, tolerance::kDeviceLayer);
}

INSTANTIATE_TEST_SUITE_P(All, CudaConvolutionShapes, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<Case>& test) { return test.param.name; });

const ConvolutionSpec kSpec{
    .input = {2, 8, 8, 8}, .out_channels = 8, .kernel = 3, .padding = 1, .bias = true};

TEST_F(CudaConvolutionTest, TakesTf32WhereAllowed) {
  ConvolutionSpec spec = kSpec;
  spec.precision = MatrixPrecision::kTf32;
  PlanRun host(Device::host(), spec);
  PlanRun cuda(Device::cuda(0), spec);
  host.finish();
  cuda.finish();
  expect_equal_runs(cuda, host, tolerance::kTf32Layer);
}

// Two plans of one shape, enqueued by two threads on two streams, so that nothing orders one after the other.
TEST_F(CudaConvolutionTest, PlansRunOnTwoStreamsAtOnce) {
  PlanRun host(Device::host(), kSpec);
  host.finish();
  PlanRun first(Device::cuda(0), kSpec);
  PlanRun second(Device::cuda(0), kSpec);
  const auto repeat = [](PlanRun& run) {
    for (int i = 0; i < 5; ++i) run.enqueue();
    run.stream.synchronize();
  };
  std::thread other([&] { repeat(second); });
  repeat(first);
  other.join();
  expect_equal_runs(first, host, tolerance::kDeviceLayer);
  expect_equal_runs(second, host, tolerance::kDeviceLayer);
}

// A plan is made in one thread and used in another when that one is gone.
TEST_F(CudaConvolutionTest, OutlivesTheThreadThatPlannedIt) {
  PlanRun host(Device::host(), kSpec);
  host.finish();
  std::unique_ptr<PlanRun> cuda;
  std::thread([&] { cuda = std::make_unique<PlanRun>(Device::cuda(0), kSpec); }).join();
  cuda->finish();
  expect_equal_runs(*cuda, host, tolerance::kDeviceLayer);
}

// More sets of addresses than a plan remembers, each used twice.
TEST_F(CudaConvolutionTest, WritesWhereItIsToldAmongManyPlaces) {
  constexpr std::size_t kPlaces = 100;
  PlanRun host(Device::host(), kSpec);
  host.finish();
  const PlanRun cuda(Device::cuda(0), kSpec);
  Stream stream(Device::cuda(0));
  std::vector<Buffer<float>> outputs;
  for (std::size_t i = 0; i < kPlaces; ++i) {
    outputs.emplace_back(Device::cuda(0), values_of(convolution_output(kSpec)));
  }
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (const Buffer<float>& output : outputs) {
      stream.fill_zero(output.data(), output.size() * sizeof(float));
      cuda.operands.forward(*cuda.plan, stream, output.data(), cuda.workspace.data());
    }
  }
  stream.synchronize();
  for (const Buffer<float>& output : outputs) {
    expect_close(Operands::read(output), host.operands.output(), tolerance::kDeviceLayer, "output");
  }
}

TEST_F(CudaConvolutionTest, RunsWithoutAllocating) {
  PlanRun cuda(Device::cuda(0), kSpec);
  const std::int64_t before = allocation_count();
  cuda.finish();
  EXPECT_EQ(allocation_count(), before);
}

TEST_F(CudaConvolutionTest, RefusesBadSpecsAndMissingBiases) {
  ConvolutionSpec bad = kSpec;
  bad.groups = 3;
  EXPECT_THROW(make_convolution(Device::cuda(0), 1, bad), std::invalid_argument);
  bad = kSpec;
  bad.kernel = 11;
  EXPECT_THROW(make_convolution(Device::cuda(0), 1, bad), std::invalid_argument);
  bad = kSpec;
  bad.dilation = 0;
  EXPECT_THROW(make_convolution(Device::cuda(0), 1, bad), std::invalid_argument);
  const auto plan = make_convolution(Device::cuda(0), 1, kSpec);
  Stream stream(Device::cuda(0));
  EXPECT_THROW(plan->forward(stream, {}, nullptr), std::invalid_argument);
}

// 2^32 weights, of which nothing is allocated.
TEST_F(CudaConvolutionTest, NamesTheConvolutionThatCannotBePlanned) {
  const ConvolutionSpec spec{.input = {1, 1, 1, 1 << 16}, .out_channels = 1 << 16};
  try {
    make_convolution(Device::cuda(0), 1, spec);
    FAIL() << "planned";
  } catch (const DeviceError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("forward"), std::string::npos) << message;
    EXPECT_NE(message.find(describe(spec)), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace pipeoptim::test
