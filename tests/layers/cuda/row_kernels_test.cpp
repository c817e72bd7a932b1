// Which batch norms and poolings cuDNN gets; that it computes the same is in equal_layers_test.cpp.
#include <gtest/gtest.h>

#include "layers/batch_norm.h"
#include "layers/pooling.h"
#include "layers/residual.h"
#include "layers/vendor_rows.h"
#include "tests/support/layer_run.h"

namespace pipeoptim::test {
namespace {

class CudaRowKernels : public testing::Test {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
  }
};

VendorNormSpec norm_of(const Shape& input, ElementType type = ElementType::kFp32) {
  return {.input = input, .type = type, .eps = 1e-5F, .momentum = 0.1F, .activation = Activation::kRelu};
}

TEST_F(CudaRowKernels, AreCudnnsForBatchNormOfChannelsInFours) {
  for (const ElementType type : {ElementType::kFp32, ElementType::kBf16}) {
    EXPECT_NE(detail::make_cuda_norm(Device::cuda(0), norm_of({4, 8, 8, 16}, type)), nullptr);
    EXPECT_NE(detail::make_cuda_norm(Device::cuda(0), norm_of({32, 1, 1, 64}, type)), nullptr);
  }
  for (const std::int64_t channels : {5, 6}) {
    EXPECT_EQ(detail::make_cuda_norm(Device::cuda(0), norm_of({4, 8, 8, channels})), nullptr);
  }
}

bool has_pool(PoolKind kind, ElementType type, std::int64_t window = 3) {
  const VendorPoolSpec spec{.kind = kind,
                            .input = {4, 16, 16, 8},
                            .output = {4, (16 + 2 - window) / 2 + 1, (16 + 2 - window) / 2 + 1, 8},
                            .type = type,
                            .window = {window, window},
                            .stride = {2, 2},
                            .padding = {1, 1}};
  return detail::make_cuda_pool(Device::cuda(0), spec) != nullptr;
}

TEST_F(CudaRowKernels, AreCudnnsForPoolingThatItDoesRight) {
  EXPECT_TRUE(has_pool(PoolKind::kMaximum, ElementType::kFp32));
  EXPECT_TRUE(has_pool(PoolKind::kMaximum, ElementType::kBf16));
  EXPECT_TRUE(has_pool(PoolKind::kMean, ElementType::kFp32));
  EXPECT_FALSE(has_pool(PoolKind::kMean, ElementType::kBf16));
  EXPECT_FALSE(has_pool(PoolKind::kMaximum, ElementType::kFp32, 12)) << "144 positions";
}

// cuDNN remembers a maximum in one byte, our kernels in four.
std::size_t stash_of_pool(RowKernels kernels) {
  MaxPool2d layer;
  layer.set_row_kernels(kernels);
  return layer.plan(Device::cuda(0), 1, {4, 8, 8, 16}).stash_bytes;
}

TEST_F(CudaRowKernels, AreCudnnsForPoolingWhereAskedFor) {
  constexpr std::size_t kOutputs = 4 * 4 * 4 * 16;
  EXPECT_EQ(stash_of_pool(RowKernels::kCudnn), kOutputs);
  EXPECT_EQ(stash_of_pool(RowKernels::kOwn), kOutputs * sizeof(std::int32_t));
}

// The gradient behind the ReLU needs room of its own.
TEST_F(CudaRowKernels, ReachLayersInsideOfLayers) {
  const auto workspace = [](RowKernels kernels) {
    std::vector<NamedLayer> body;
    body.push_back(
        {"bn", std::make_unique<BatchNorm2d>(16, BatchNormOptions{.activation = Activation::kRelu})});
    Residual block(std::move(body));
    block.set_row_kernels(kernels);
    return block.plan(Device::cuda(0), 1, {4, 32, 32, 16}).workspace_bytes;
  };
  EXPECT_GE(workspace(RowKernels::kCudnn),
            workspace(RowKernels::kOwn) + 4 * 32 * 32 * 16 * sizeof(float) / 2);
}

}  // namespace
}  // namespace pipeoptim::test
