// Dropout with a counter-based mask. Srivastava et al., JMLR 2014.
#pragma once

#include <cstdint>
#include <string>

#include "layers/layer.h"

namespace pipeoptim {

// In training y = x / (1 - p) with probability 1 - p, else 0; in evaluation y = x. Backward draws the same
// mask again from (seed, micro-batch, layer, element): nothing is stored. In place.
class Dropout final : public Layer {
 public:
  // Throws std::invalid_argument unless 0 <= p < 1.
  explicit Dropout(double probability);

  std::string describe() const override;
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;

 private:
  double probability_;
  std::uint32_t threshold_;  // drawn bits below it drop the element
  float gain_;
};

}  // namespace pipeoptim
