// Element-wise activations. Shapes and layouts pass through; none has parameters.
#pragma once

#include <string>

#include "layers/layer.h"

namespace pipeoptim {

// y = max(x, 0); a NaN stays one. In place; backward reads the output: dx = dy where y > 0.
class ReLU final : public Layer {
 public:
  std::string describe() const override { return "relu"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

// y = tanh(x), dx = dy (1 - y^2). In place.
class Tanh final : public Layer {
 public:
  std::string describe() const override { return "tanh"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

// y = 1 / (1 + exp(-x)), dx = dy y (1 - y). In place.
class Sigmoid final : public Layer {
 public:
  std::string describe() const override { return "sigmoid"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

enum class GeluForm {
  kErf,  // Phi exact: PyTorch's default
  kTanh  // Phi(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2: GPT-2's and PyTorch's approximate="tanh"
};

// y = x Phi(x) with the normal distribution's Phi. Hendrycks and Gimpel, arXiv 1606.08415. Backward reads the
// input.
class GELU final : public Layer {
 public:
  explicit GELU(GeluForm form = GeluForm::kErf) : form_(form) {}
  std::string describe() const override { return form_ == GeluForm::kErf ? "gelu" : "gelu (tanh)"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;

 private:
  // By host::gelu.
  bool vectorized(const Stream& stream, const ConstTensor& input) const;

  GeluForm form_;
};

// For layers with a ReLU in their output: gradient[i] = output[i] > 0 ? output_gradient[i] : 0.
// All of one type.
void relu_gradient(Stream& stream, const ConstTensor& output, const ConstTensor& output_gradient,
                   const Tensor& gradient);

}  // namespace pipeoptim
