// Layer normalization over the last axis. Ba et al., arXiv 1607.06450.
#pragma once

#include <cstdint>
#include <string>

#include "layers/layer.h"

namespace pipeoptim {

// y = weight (x - mean) / sqrt(var + eps) + bias with the mean and the biased variance of each row, eps 1e-5,
// as PyTorch. Parameters "weight" and "bias" {features}. Their gradients are sums over fixed chunks of rows:
// the bits do not depend on threads.
class LayerNorm final : public Layer {
 public:
  explicit LayerNorm(std::int64_t features);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  ElementTypes choose_types(ElementTypes offered) override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;

 private:
  std::int64_t features_;
};

}  // namespace pipeoptim
