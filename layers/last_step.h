// From a sequence to one vector a record.
#pragma once

#include <string>

#include "layers/layer.h"

namespace pipeoptim {

// {N, T, F} -> {N, F}: the last position.
class LastStep final : public Layer {
 public:
  std::string describe() const override { return "last step"; }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

}  // namespace pipeoptim
