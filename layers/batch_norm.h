// Batch normalization over the channels of {N, H, W, C} or {N, C}. Ioffe and Szegedy, arXiv 1502.03167.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layers/layer.h"

namespace pipeoptim {

class VendorNorm;

struct BatchNormOptions {
  float eps = 1e-5F;
  float momentum = 0.1F;                      // weight of the new value in the running statistics, as PyTorch
  Activation activation = Activation::kNone;  // fused: y = relu(bn(x)), one pass less each way
};

// y = weight (x - mean) / sqrt(var + eps) + bias, with the statistics of the micro-batch in training (biased
// variance) and the running ones in evaluation (unbiased variance, as PyTorch). Parameters "weight" {C} and
// "bias" {C}, states "running_mean" and "running_var". Sums go over fixed chunks of rows: the bits do not
// depend on threads.
class BatchNorm2d final : public Layer {
 public:
  explicit BatchNorm2d(std::int64_t channels, BatchNormOptions options = {});
  ~BatchNorm2d() override;

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  std::vector<State> states() const override;
  ElementTypes choose_types(ElementTypes offered) override;
  void set_row_kernels(RowKernels kernels) override { kernels_ = kernels; }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;

 private:
  std::int64_t channels_;
  BatchNormOptions options_;
  RowKernels kernels_ = RowKernels::kOwn;
  ElementType type_ = ElementType::kFp32;
  std::unique_ptr<VendorNorm> vendor_;  // null: our own kernels
};

}  // namespace pipeoptim
