// The fully connected layer: y = x W^T + b, over the last axis of {N, F} or {N, T, F}.
#pragma once

#include <optional>

#include "layers/bias.h"
#include "layers/layer.h"

namespace pipeoptim {

// How the first values are drawn.
struct LinearInit {
  Initializer weight, bias;
  // Weights from a normal distribution around 0, biases 0.
  static LinearInit normal(float deviation) { return {{Initializer::Kind::kNormal, deviation}, {}}; }
};

class Linear final : public Layer {
 public:
  // Without `init` as PyTorch does. Throws std::invalid_argument unless both extents are positive.
  Linear(std::int64_t in, std::int64_t out, Bias bias = Bias::kYes, std::optional<LinearInit> init = {});

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
  LinearInit init_;
  std::int64_t rows_ = 0;  // 0 before plan()
};

}  // namespace pipeoptim
