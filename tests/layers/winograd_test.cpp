// Which convolutions Winograd's algorithm is taken for; that it computes them is in conv2d_test.cpp.
#include "layers/host/winograd.h"

#include <gtest/gtest.h>

#include "layers/host/avx512.h"

namespace pipeoptim::host {
namespace {

ConvolutionSpec spec_of(const Shape& input, std::int64_t out) {
  return {.input = input, .out_channels = out, .kernel = 3, .padding = 1};
}

class Winograd : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_avx512()) GTEST_SKIP() << "no AVX-512";
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

}  // namespace
}  // namespace pipeoptim::host
