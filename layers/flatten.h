// Images to rows.
#pragma once

#include <string>

#include "layers/layer.h"

namespace pipeoptim {

// {N, H, W, C} -> {N, C H W} in PyTorch's order (channel, row, column), so that a Linear behind it has
// PyTorch's weight.
class Flatten final : public Layer {
 public:
  std::string describe() const override { return "flatten"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

}  // namespace pipeoptim
