#include "layers/conv2d.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace pipeoptim {
namespace {

std::string text(std::int64_t value) { return std::to_string(value); }

}  // namespace

Conv2d::Conv2d(Conv2dOptions options) : options_(options) {
  const auto& o = options_;
  const bool positive =
      o.in > 0 && o.out > 0 && o.kernel > 0 && o.stride > 0 && o.dilation > 0 && o.groups > 0;
  if (!positive || o.padding < 0) {
    throw std::invalid_argument(describe() + ": everything but the padding must be positive");
  }
  if (o.in % o.groups != 0 || o.out % o.groups != 0) {
    throw std::invalid_argument(describe() + ": the groups must divide the channels");
  }
}

std::string Conv2d::describe() const {
  const auto& o = options_;
  std::string line =
      "conv2d " + text(o.kernel) + "x" + text(o.kernel) + ", " + text(o.in) + " -> " + text(o.out);
  if (o.stride != 1) line += ", stride " + text(o.stride);
  if (o.padding != 0) line += ", padding " + text(o.padding);
  if (o.dilation != 1) line += ", dilation " + text(o.dilation);
  if (o.groups != 1) line += ", " + text(o.groups) + " groups";
  return line;
}

std::vector<Parameter> Conv2d::parameters() const {
  const auto& o = options_;
  const std::int64_t fan_in = std::max<std::int64_t>(1, o.in / o.groups * o.kernel * o.kernel);
  const Initializer uniform{Initializer::Kind::kUniform, 1.0F / std::sqrt(static_cast<float>(fan_in))};
  std::vector<Parameter> parameters{{.name = "weight",
                                     .shape = {o.out, o.in / o.groups, o.kernel, o.kernel},
                                     .initializer = uniform,
                                     .storage = Storage::kChannelsLast,
                                     .may_be_rounded = true}};
  if (has_bias()) {
    parameters.push_back({.name = "bias", .shape = {o.out}, .initializer = uniform, .decay = Decay::kNo});
  }
  return parameters;
}

ElementTypes Conv2d::choose_types(ElementTypes offered) {
  types_ = product_types(precision_, offered);
  return types_;
}

LayerPlan Conv2d::plan(Device device, int threads, const Shape& input) {
  const auto& o = options_;
  if (input.rank() != 4 || input[3] != o.in) {
    throw std::invalid_argument(describe() + ": the input must be NxHxWx" + text(o.in) + ", got " +
                                input.to_string());
  }
  const ConvolutionSpec spec{.input = input,
                             .out_channels = o.out,
                             .kernel = o.kernel,
                             .stride = o.stride,
                             .padding = o.padding,
                             .dilation = o.dilation,
                             .groups = o.groups,
                             .bias = has_bias(),
                             .precision = precision_,
                             .types = types_};
  LayerPlan plan;
  try {
    plan.output = convolution_output(spec);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(describe() + ": " + error.what());
  }
  convolution_ = make_convolution(device, threads, spec);
  output_rows_ = {plan.output.elements() / o.out, o.out};
  plan.needs = Needs::kInput;
  plan.workspace_bytes = convolution_->workspace_bytes();
  if (has_bias())
    plan.workspace_bytes = std::max(plan.workspace_bytes, bias_gradient_workspace(output_rows_));
  plan.forward_flops = convolution_flops(spec);
  plan.backward_flops = 2 * plan.forward_flops;
  plan.bytes = 3.0 * sizeof(float) *
               static_cast<double>(input.elements() + plan.output.elements() + convolution_weights(spec));
  return plan;
}

const ConvolutionPlan& Conv2d::planned() const {
  if (!convolution_) throw std::logic_error(describe() + ": run before plan()");
  return *convolution_;
}

void Conv2d::forward(const ForwardContext& context) const {
  planned().forward(context.stream,
                    {.input = context.input.factor(),
                     .weights = context.weights.factor(0),
                     .bias = has_bias() ? context.weights[1] : nullptr,
                     .output = context.output.destination()},
                    context.workspace);
}

void Conv2d::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there()) return;
  planned().backward_data(context.stream,
                          {.weights = context.weights.factor(0),
                           .output_gradient = context.output_gradient.factor(),
                           .input_gradient = context.input_gradient.destination()},
                          context.workspace);
}

void Conv2d::run_weights(const BackwardContext& context, Workspace holds) const {
  planned().backward_weights(context.stream,
                             {.input = context.input.factor(),
                              .output_gradient = context.output_gradient.factor(),
                              .weight_gradient = context.gradients[0],
                              .mode = context.gradients.mode,
                              .workspace = holds},
                             context.workspace);
  if (!has_bias()) return;
  sum_bias_gradient(context.stream, output_rows_, context.output_gradient.factor(), context.gradients[1],
                    context.gradients.mode, context.workspace);
}

void Conv2d::backward(const BackwardContext& context) const {
  backward_input(context);
  run_weights(context, after_input_gradient(context));
}

void Conv2d::backward_weights(const BackwardContext& context) const {
  run_weights(context, Workspace::kUndefined);
}

}  // namespace pipeoptim
