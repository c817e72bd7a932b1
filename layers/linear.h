// The fully connected layer: y = activation(x W^T + b), over the last axis of {N, F} or {N, T, F}.
#pragma once

#include <memory>
#include <optional>

#include "layers/bias.h"
#include "layers/layer.h"
#include "layers/provider.h"

namespace pipeoptim {

// How the first values are drawn.
struct LinearInit {
  Initializer weight, bias;
  // Weights from a normal distribution around 0, biases 0.
  static LinearInit normal(float deviation) { return {{Initializer::Kind::kNormal, deviation}, {}}; }
};

struct LinearOptions {
  Bias bias = Bias::kYes;
  // In the product's epilogue: a pass over the output less. A value in front of it that is not a number may
  // become 0, as the libraries' epilogues have it, so that a training that diverges goes on unnoticed: the
  // models of models/zoo.h have a layer ReLU instead, which keeps it.
  Activation activation = Activation::kNone;
  std::optional<LinearInit> init = {};  // as PyTorch's where there is none
};

class Linear final : public Layer {
 public:
  // Throws std::invalid_argument unless both extents are positive.
  Linear(std::int64_t in, std::int64_t out, LinearOptions options = {});

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;  // weight [out, in], bias [out]
  ElementTypes choose_types(ElementTypes offered) override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward(const BackwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;
  void set_precision(MatrixPrecision precision) override { precision_ = precision; }

 private:
  ConstTensor gradient_before_activation(const BackwardContext& context) const;
  void run_input(const BackwardContext& context, const ConstTensor& gradient) const;
  void run_weights(const BackwardContext& context, const ConstTensor& gradient, Workspace holds) const;

  std::int64_t in_;
  std::int64_t out_;
  LinearOptions options_;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  ElementTypes types_;
  std::unique_ptr<LinearPlan> product_;  // null before plan()
  std::size_t masked_ = 0;               // offset in the workspace, behind the product's
};

}  // namespace pipeoptim
