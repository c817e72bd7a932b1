#include "layers/linear.h"

#include <cmath>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "layers/activation.h"

namespace pipeoptim {

Linear::Linear(std::int64_t in, std::int64_t out, LinearOptions options)
    : in_(in), out_(out), options_(options) {
  if (in <= 0 || out <= 0) {
    throw std::invalid_argument(describe() + ": needs at least one input and one output feature");
  }
}

std::string Linear::describe() const {
  return "linear " + std::to_string(in_) + " -> " + std::to_string(out_) +
         (options_.activation == Activation::kRelu ? ", relu" : "");
}

std::vector<Parameter> Linear::parameters() const {
  const Initializer uniform{Initializer::Kind::kUniform, 1.0F / std::sqrt(static_cast<float>(in_))};
  const LinearInit init = options_.init.value_or(LinearInit{uniform, uniform});
  std::vector<Parameter> parameters{
      {.name = "weight", .shape = {out_, in_}, .initializer = init.weight, .may_be_rounded = true}};
  if (options_.bias == Bias::kYes) {
    parameters.push_back({.name = "bias", .shape = {out_}, .initializer = init.bias, .decay = Decay::kNo});
  }
  return parameters;
}

ElementTypes Linear::choose_types(ElementTypes offered) {
  types_ = product_types(precision_, offered);
  return types_;
}

LayerPlan Linear::plan(Device device, int threads, const Shape& input) {
  const bool fits = (input.rank() == 2 || input.rank() == 3) && input.last() == in_ && input.elements() > 0;
  if (!fits) {
    const std::string hint = input.rank() == 4 ? " (flatten images first)" : "";
    throw std::invalid_argument(describe() + ": the input must be Nx" + std::to_string(in_) + " or NxTx" +
                                std::to_string(in_) + ", got " + input.to_string() + hint);
  }
  const std::int64_t rows = input.elements() / in_;
  product_ = make_linear(device, threads,
                         {.rows = rows,
                          .in = in_,
                          .out = out_,
                          .bias = options_.bias,
                          .activation = options_.activation,
                          .precision = precision_,
                          .types = types_});
  LayerPlan plan;
  plan.output = input;
  plan.output[input.rank() - 1] = out_;
  ArenaPlan workspace;
  workspace.reserve(product_->workspace_bytes());
  plan.needs = Needs::kInput;
  if (options_.activation == Activation::kRelu) {
    masked_ = workspace.reserve(tensor_bytes(plan.output, types_.output));
    plan.needs = Needs::kInputAndOutput;
  }
  plan.workspace_bytes = workspace.bytes();
  plan.forward_flops = 2.0 * static_cast<double>(rows) * static_cast<double>(in_ * out_);
  plan.backward_flops = 2 * plan.forward_flops;
  plan.bytes = 3.0 * sizeof(float) * static_cast<double>(rows * (in_ + out_) + in_ * out_);
  return plan;
}

void Linear::forward(const ForwardContext& context) const {
  if (!product_) throw std::logic_error(describe() + ": run before plan()");
  product_->forward(context.stream,
                    {.input = context.input.factor(),
                     .weights = context.weights.factor(0),
                     .bias = options_.bias == Bias::kYes ? context.weights[1] : nullptr,
                     .output = context.output.destination()},
                    context.workspace);
}

// The halves of backward may be far apart: each makes this anew.
ConstTensor Linear::gradient_before_activation(const BackwardContext& context) const {
  if (options_.activation == Activation::kNone) return context.output_gradient;
  const Tensor masked = Tensor::at(context.workspace + masked_, types_.output, context.output_gradient.shape);
  relu_gradient(context.stream, context.output, context.output_gradient, masked);
  return masked;
}

void Linear::run_input(const BackwardContext& context, const ConstTensor& gradient) const {
  if (!context.input_gradient.there()) return;
  product_->backward_input(context.stream,
                           {.weights = context.weights.factor(0),
                            .output_gradient = gradient.factor(),
                            .input_gradient = context.input_gradient.destination()},
                           context.workspace);
}

void Linear::run_weights(const BackwardContext& context, const ConstTensor& gradient, Workspace holds) const {
  product_->backward_weights(context.stream,
                             {.input = context.input.factor(),
                              .output_gradient = gradient.factor(),
                              .weight_gradient = context.gradients[0],
                              .bias_gradient = options_.bias == Bias::kYes ? context.gradients[1] : nullptr,
                              .mode = context.gradients.mode,
                              .workspace = holds},
                             context.workspace);
}

void Linear::backward(const BackwardContext& context) const {
  const ConstTensor gradient = gradient_before_activation(context);
  run_input(context, gradient);
  run_weights(context, gradient, after_input_gradient(context));
}

void Linear::backward_input(const BackwardContext& context) const {
  if (context.input_gradient.there()) run_input(context, gradient_before_activation(context));
}

void Linear::backward_weights(const BackwardContext& context) const {
  run_weights(context, gradient_before_activation(context), Workspace::kUndefined);
}

}  // namespace pipeoptim
