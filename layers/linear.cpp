#include "layers/linear.h"

#include <cmath>
#include <stdexcept>

#include "layers/provider.h"

namespace pipeoptim {

Linear::Linear(std::int64_t in, std::int64_t out, Bias bias, std::optional<LinearInit> init)
    : in_(in), out_(out), bias_(bias) {
  if (in <= 0 || out <= 0) {
    throw std::invalid_argument(describe() + ": needs at least one input and one output feature");
  }
  const Initializer uniform{Initializer::Kind::kUniform, 1.0F / std::sqrt(static_cast<float>(in))};
  init_ = init.value_or(LinearInit{uniform, uniform});
}

std::string Linear::describe() const {
  return "linear " + std::to_string(in_) + " -> " + std::to_string(out_);
}

std::vector<Parameter> Linear::parameters() const {
  std::vector<Parameter> parameters{{.name = "weight", .shape = {out_, in_}, .initializer = init_.weight}};
  if (bias_ == Bias::kYes) {
    parameters.push_back({.name = "bias", .shape = {out_}, .initializer = init_.bias, .decay = Decay::kNo});
  }
  return parameters;
}

LayerPlan Linear::plan(Device, int, const Shape& input) {
  const bool fits = (input.rank() == 2 || input.rank() == 3) && input.last() == in_ && input.elements() > 0;
  if (!fits) {
    const std::string hint = input.rank() == 4 ? " (flatten images first)" : "";
    throw std::invalid_argument(describe() + ": the input must be Nx" + std::to_string(in_) + " or NxTx" +
                                std::to_string(in_) + ", got " + input.to_string() + hint);
  }
  rows_ = input.elements() / in_;
  LayerPlan plan;
  plan.output = input;
  plan.output[input.rank() - 1] = out_;
  plan.needs = Needs::kInput;
  if (bias_ == Bias::kYes) plan.workspace_bytes = bias_gradient_workspace({rows_, out_});
  plan.forward_flops = 2.0 * static_cast<double>(rows_) * static_cast<double>(in_ * out_);
  plan.backward_flops = 2 * plan.forward_flops;
  plan.bytes = 3.0 * sizeof(float) * static_cast<double>(rows_ * (in_ + out_) + in_ * out_);
  return plan;
}

void Linear::forward(const ForwardContext& context) const {
  if (rows_ == 0) throw std::logic_error(describe() + ": run before plan()");
  gemm(context.stream, {.transpose_b = Transpose::kYes,
                        .rows = rows_,
                        .columns = out_,
                        .inner = in_,
                        .a = context.input.data,
                        .b = context.weights[0],
                        .c = context.output.data});
  if (bias_ == Bias::kYes) add_bias(context.stream, {rows_, out_}, context.weights[1], context.output.data);
}

void Linear::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  gemm(context.stream, {.rows = rows_,
                        .columns = in_,
                        .inner = out_,
                        .a = context.output_gradient.data,
                        .b = context.weights[0],
                        .c = context.input_gradient.data});
}

void Linear::backward_weights(const BackwardContext& context) const {
  gemm(context.stream, {.transpose_a = Transpose::kYes,
                        .rows = out_,
                        .columns = in_,
                        .inner = rows_,
                        .a = context.output_gradient.data,
                        .b = context.input.data,
                        .c = context.gradients[0],
                        .beta = context.gradients.mode == GradientMode::kAdd ? 1.0F : 0.0F});
  if (bias_ == Bias::kNo) return;
  sum_bias_gradient(context.stream, {rows_, out_}, context.output_gradient.data, context.gradients[1],
                    context.gradients.mode, context.workspace);
}

}  // namespace pipeoptim
