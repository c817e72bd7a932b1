// The fully connected layer: y = x W^T + b, over the last axis of {N, F} or {N, T, F}.
#pragma once

#include "layers/bias.h"
#include "layers/layer.h"

namespace pipeoptim {

class Linear final : public Layer {
 public:
  // Throws std::invalid_argument unless both are positive.
  Linear(std::int64_t in, std::int64_t out, Bias bias = Bias::kYes);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;  // weight [out, in], bias [out]
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;

 private:
  std::int64_t in_;
  std::int64_t out_;
  Bias bias_;
  std::int64_t rows_ = 0;  // 0 before plan()
};

}  // namespace pipeoptim
