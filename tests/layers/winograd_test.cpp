// Which convolutions Winograd's algorithm is taken for, and that all instruction sets give the same bits;
// that it computes them is in conv2d_test.cpp.
#include "layers/host/winograd.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/layer_run.h"

namespace pipeoptim::host {
namespace {

using test::random_values;

ConvolutionSpec spec_of(const Shape& input, std::int64_t out) {
  return {.input = input, .out_channels = out, .kernel = 3, .padding = 1};
}

class Winograd : public testing::Test {
 protected:
  void SetUp() override {
    if (winograd::best_code() == nullptr) GTEST_SKIP() << "no AVX2";
  }
};

// Those of conv2d_test.cpp that are called tiled.
TEST_F(Winograd, IsForEnoughTilesOfChannelsInSixteens) {
  for (const int threads : {1, 2, 3}) {
    EXPECT_TRUE(WinogradConvolution::handles(threads, spec_of({6, 9, 7, 16}, 16)));
    EXPECT_TRUE(WinogradConvolution::handles(threads, spec_of({9, 8, 6, 48}, 48)));
    EXPECT_TRUE(WinogradConvolution::handles(threads, spec_of({13, 5, 5, 80}, 128)));
  }
  EXPECT_FALSE(WinogradConvolution::handles(1, spec_of({5, 7, 9, 8}, 24)));
  EXPECT_FALSE(WinogradConvolution::handles(1, spec_of({3, 9, 7, 16}, 16))) << "60 tiles";
  EXPECT_FALSE(WinogradConvolution::handles(6, spec_of({6, 9, 7, 16}, 16))) << "120 tiles for 6 threads";
}

TEST_F(Winograd, IsForPlainKernelsInFp32) {
  ConvolutionSpec spec = spec_of({8, 16, 16, 32}, 32);
  EXPECT_TRUE(WinogradConvolution::handles(1, spec));
  for (auto change :
       {+[](ConvolutionSpec& of) { of.stride = 2; }, +[](ConvolutionSpec& of) { of.padding = 0; },
        +[](ConvolutionSpec& of) { of.kernel = 5; }, +[](ConvolutionSpec& of) { of.groups = 2; },
        +[](ConvolutionSpec& of) { of.dilation = 2; },
        +[](ConvolutionSpec& of) { of.precision = MatrixPrecision::kBf16; }}) {
    ConvolutionSpec other = spec;
    change(other);
    EXPECT_FALSE(WinogradConvolution::handles(1, other)) << describe(other);
  }
}

TEST_F(Winograd, IsForWeightGradientsThatAreWorthIt) {
  EXPECT_FALSE(WinogradConvolution::handles_weights(1, spec_of({6, 9, 7, 16}, 16))) << "two transforms";
  EXPECT_TRUE(WinogradConvolution::handles_weights(3, spec_of({9, 8, 6, 48}, 48)));
  EXPECT_TRUE(WinogradConvolution::handles_weights(2, spec_of({13, 5, 5, 80}, 128)));
  EXPECT_FALSE(WinogradConvolution::handles_weights(3, spec_of({32, 5, 5, 1024}, 16))) << "one block";
}

struct Results {
  std::vector<float> y, dx, dw;
  bool operator==(const Results&) const = default;
};

Results run(int threads, const ConvolutionSpec& spec, const winograd::Code* code) {
  const WinogradConvolution convolution(threads, spec, code);
  Memory workspace(Device::host(), convolution.workspace_bytes());
  const std::int64_t in = spec.input[3], out = spec.out_channels;
  const std::int64_t pixels = spec.input.elements() / in;
  const auto x = random_values(pixels * in, 1), w = random_values(out * 9 * in, 2);
  const auto bias = random_values(out, 3), dy = random_values(pixels * out, 4);
  Results r{dy, x, w};  // overwritten, but the last one, which is added to
  Stream stream(Device::host(), {.threads = threads});
  convolution.forward(stream, x.data(), w.data(), bias.data(), r.y.data(), workspace.data());
  convolution.backward_data(stream, w.data(), dy.data(), r.dx.data(), workspace.data());
  convolution.backward_weights(stream, x.data(), dy.data(), r.dw.data(), GradientMode::kAdd,
                               workspace.data());
  stream.synchronize();
  return r;
}

TEST(WinogradCode, AllInstructionSetsGiveTheSameBits) {
  if (winograd::avx512_code() == nullptr) GTEST_SKIP() << "no AVX-512";
  for (const auto& spec :
       {spec_of({6, 9, 7, 16}, 16), spec_of({9, 8, 6, 48}, 48), spec_of({13, 5, 5, 80}, 128)}) {
    for (const int threads : {1, 3}) {
      const Results expected = run(threads, spec, winograd::avx512_code());
      EXPECT_EQ(run(threads, spec, winograd::avx2_code()) == expected, true) << describe(spec);
    }
  }
}

}  // namespace
}  // namespace pipeoptim::host
