#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/launch.h"
#include "layers/accumulate.h"
#include "layers/activation.h"
#include "layers/elementwise.h"
#include "layers/residual.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

struct ActivatedSum {
  bool relu;
  PO_HD float operator()(float a, float b) const {
    const float sum = a + b;
    return relu && sum < 0 ? 0 : sum;
  }
};

}  // namespace

Residual::Residual(std::vector<NamedLayer> body, std::vector<NamedLayer> shortcut, FinalActivation activation)
    : activation_(activation), body_(std::move(body)) {
  if (!shortcut.empty()) shortcut_ = std::make_unique<Sequence>(std::move(shortcut));
  body_parameters_ = body_.parameters().size();
  body_states_ = body_.states().size();
}

std::string Residual::describe() const {
  return "residual [" + body_.describe() + " | " + (shortcut_ ? shortcut_->describe() : "identity") + "]" +
         (activation_ == FinalActivation::kRelu ? " + relu" : "");
}

std::vector<Parameter> Residual::parameters() const {
  std::vector<Parameter> all = body_.parameters();
  if (shortcut_) {
    for (Parameter& parameter : shortcut_->parameters()) all.push_back(std::move(parameter));
  }
  return all;
}

std::vector<State> Residual::states() const {
  std::vector<State> all = body_.states();
  if (shortcut_) {
    for (State& state : shortcut_->states()) all.push_back(std::move(state));
  }
  return all;
}

int Residual::random_layers() const {
  return body_.random_layers() + (shortcut_ ? shortcut_->random_layers() : 0);
}

void Residual::set_row_kernels(RowKernels kernels) {
  body_.set_row_kernels(kernels);
  if (shortcut_) shortcut_->set_row_kernels(kernels);
}

// Without a shortcut the input is added as it is.
ElementTypes Residual::choose_types(ElementTypes offered) {
  body_.set_precision(precision_);
  if (shortcut_) shortcut_->set_precision(precision_);
  for (types_ = offered;;) {
    const ElementTypes before = types_;
    types_ = body_.choose_types(types_);
    types_ = shortcut_ ? shortcut_->choose_types(types_) : same_types(types_);
    if (types_ == before) return types_;
  }
}

LayerPlan Residual::plan(Device device, int threads, const Shape& input) {
  choose_types(types_);
  body_.set_backward_split(split_);
  if (shortcut_) shortcut_->set_backward_split(split_);
  body_plan_ = body_.plan(device, threads, input);
  shortcut_plan_ = {};
  shortcut_plan_.output = input;
  shortcut_plan_.needs = Needs::kNothing;
  if (shortcut_) shortcut_plan_ = shortcut_->plan(device, threads, input);
  if (!(body_plan_.output == shortcut_plan_.output)) {
    throw std::invalid_argument("residual block: the body makes " + body_plan_.output.to_string() + " of " +
                                input.to_string() + ", the shortcut " + shortcut_plan_.output.to_string());
  }
  const bool relu = activation_ == FinalActivation::kRelu;
  const std::size_t output_bytes = tensor_bytes(body_plan_.output, types_.output);
  ArenaPlan stash;
  ArenaPlan workspace;
  stash.reserve(body_plan_.stash_bytes);
  shortcut_stash_ = stash.reserve(shortcut_plan_.stash_bytes);
  body_output_kept_ = needs_output(body_plan_.needs);
  shortcut_output_kept_ = needs_output(shortcut_plan_.needs);
  body_output_ = stash.reserve(body_output_kept_ ? output_bytes : 0);
  shortcut_output_ = (shortcut_output_kept_ ? stash : workspace).reserve(shortcut_ ? output_bytes : 0);
  gradient_in_stash_ = relu && split_ == BackwardSplit::kSplit;
  sum_gradient_ = (gradient_in_stash_ ? stash : workspace).reserve(relu ? output_bytes : 0);
  branch_gradient_ = workspace.reserve(shortcut_ ? tensor_bytes(input, types_.input) : 0);
  branch_workspace_ = workspace.reserve(std::max(body_plan_.workspace_bytes, shortcut_plan_.workspace_bytes));

  LayerPlan plan;
  plan.output = body_plan_.output;
  plan.stash_bytes = stash.bytes();
  plan.workspace_bytes = workspace.bytes();
  const bool input_needed = needs_input(body_plan_.needs) || needs_input(shortcut_plan_.needs);
  plan.needs = input_needed ? (relu ? Needs::kInputAndOutput : Needs::kInput)
                            : (relu ? Needs::kOutput : Needs::kNothing);
  plan.random = body_plan_.random || shortcut_plan_.random;
  plan.forward_flops = body_plan_.forward_flops + shortcut_plan_.forward_flops;
  plan.backward_flops = body_plan_.backward_flops + shortcut_plan_.backward_flops;
  plan.bytes = body_plan_.bytes + shortcut_plan_.bytes + 8.0 * static_cast<double>(output_bytes);
  return plan;
}

void Residual::forward(const ForwardContext& context) const {
  ForwardContext branch = context;
  branch.workspace = context.workspace + branch_workspace_;
  branch.weights = context.weights.slice(0, body_parameters_);
  branch.states = context.states.first(body_states_);
  if (body_output_kept_) branch.output = output_at(context.stash, body_output_);
  const ConstTensor body = branch.output;
  body_.forward(branch);
  ConstTensor other = context.input;
  if (shortcut_) {
    branch.weights = context.weights.slice(body_parameters_);
    branch.states = context.states.subspan(body_states_);
    branch.stash = context.stash + shortcut_stash_;
    branch.output = output_at(shortcut_output_kept_ ? context.stash : context.workspace, shortcut_output_);
    branch.random.layer += static_cast<std::uint64_t>(body_.random_layers());
    shortcut_->forward(branch);
    other = branch.output;
  }
  with_type_of(body, [&]<typename T>() {
    for_each(context.stream, body.elements(),
             Map2<ActivatedSum, T>{values_of<T>(body),
                                   values_of<T>(other),
                                   values_of<T>(context.output),
                                   {activation_ == FinalActivation::kRelu}});
  });
}

Tensor Residual::output_at(std::byte* memory, std::size_t offset) const {
  return Tensor::at(memory + offset, types_.output, body_plan_.output);
}

void Residual::run_backward(const BackwardContext& context, Half half) const {
  const auto run = [half](const Sequence& sequence, const BackwardContext& branch) {
    if (half == Half::kBoth) return sequence.backward(branch);
    if (half == Half::kInput) return sequence.backward_input(branch);
    return sequence.backward_weights(branch);
  };
  const bool first_half = half != Half::kWeights;
  BackwardContext branch = context;
  branch.workspace = context.workspace + branch_workspace_;
  if (activation_ == FinalActivation::kRelu) {
    const Tensor gradient = output_at(gradient_in_stash_ ? context.stash : context.workspace, sum_gradient_);
    if (first_half) relu_gradient(context.stream, context.output, context.output_gradient, gradient);
    branch.output_gradient = gradient;
  }
  branch.weights = context.weights.slice(0, body_parameters_);
  branch.gradients.pointers = context.gradients.pointers.first(body_parameters_);
  branch.output = {};
  if (body_output_kept_) branch.output = output_at(context.stash, body_output_);
  run(body_, branch);

  ConstTensor other = branch.output_gradient;
  if (shortcut_) {
    branch.weights = context.weights.slice(body_parameters_);
    branch.gradients.pointers = context.gradients.pointers.subspan(body_parameters_);
    branch.output = {};
    if (shortcut_output_kept_) branch.output = output_at(context.stash, shortcut_output_);
    branch.stash = context.stash + shortcut_stash_;
    branch.random.layer += static_cast<std::uint64_t>(body_.random_layers());
    if (context.input_gradient.there()) {
      branch.input_gradient =
          Tensor::at(context.workspace + branch_gradient_, types_.input, context.input_gradient.shape);
    }
    run(*shortcut_, branch);
    other = branch.input_gradient;
  }
  if (!first_half || !context.input_gradient.there()) return;
  accumulate(context.stream, other, context.input_gradient);
}

void Residual::backward(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kSplit) return Layer::backward(context);
  run_backward(context, Half::kBoth);
}
void Residual::backward_input(const BackwardContext& context) const { run_backward(context, Half::kInput); }
void Residual::backward_weights(const BackwardContext& context) const {
  run_backward(context, Half::kWeights);
}

}  // namespace pipeoptim
