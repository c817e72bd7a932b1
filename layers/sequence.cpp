#include "layers/sequence.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace pipeoptim {
namespace {

std::string joined(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : prefix + "." + name;
}

// The same memory, to be handed on as what nobody writes.
Tensor unprotected(const ConstTensor& tensor) {
  return {const_cast<float*>(tensor.data), tensor.shape, const_cast<Bf16*>(tensor.rounded)};
}

template <typename Range>
Range slice(const Range& all, std::size_t first, std::size_t count) {
  return all.subspan(first, count);
}

void require_offered(const Layer& layer, ElementTypes offered, ElementTypes chosen) {
  const auto adds = [](ElementType choice, ElementType offer) {
    return choice == ElementType::kBf16 && offer == ElementType::kFp32;
  };
  if (adds(chosen.input, offered.input) || adds(chosen.output, offered.output)) {
    throw std::logic_error(layer.describe() + ": chooses bf16 where it is offered fp32");
  }
}

}  // namespace

void require_layer(const NamedLayer& named) {
  if (!named.layer) throw std::invalid_argument("layer '" + named.name + "' is null");
}

std::vector<ElementType> agree_on_types(std::span<Layer* const> layers, MatrixPrecision precision,
                                        ElementTypes ends) {
  const bool rounds = precision == MatrixPrecision::kBf16;
  std::vector<ElementType> types(layers.size() + 1, rounds ? ElementType::kBf16 : ElementType::kFp32);
  types.front() = ends.input;
  types.back() = ends.output;
  for (Layer* const layer : layers) layer->set_precision(precision);
  // Types only ever go from bf16 to fp32, so this ends.
  for (bool agreed = false; !agreed;) {
    agreed = true;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const ElementTypes offered{types[i], types[i + 1]};
      const ElementTypes chosen = layers[i]->choose_types(offered);
      require_offered(*layers[i], offered, chosen);
      agreed = agreed && chosen == offered;
      types[i] = chosen.input;
      types[i + 1] = chosen.output;
    }
  }
  return types;
}

Sequence::Sequence(std::vector<NamedLayer> layers, BackwardSplit split) : split_(split) {
  if (layers.empty()) throw std::invalid_argument("a sequence needs at least one layer");
  Share share;
  for (NamedLayer& named : layers) {
    require_layer(named);
    share.parameters = named.layer->parameters().size();
    share.states = named.layer->states().size();
    shares_.push_back(share);
    share.first_parameter += share.parameters;
    share.first_state += share.states;
    share.random_layer += static_cast<std::uint64_t>(named.layer->random_layers());
    children_.push_back({std::move(named.name), std::move(named.layer), {}});
  }
  const auto trained = [](const Share& of) { return of.parameters > 0; };
  first_trained_ = static_cast<std::size_t>(std::ranges::find_if(shares_, trained) - shares_.begin());
}

std::string Sequence::describe() const {
  std::string text;
  for (const Child& child : children_) text += (text.empty() ? "" : ", ") + child.layer->describe();
  return text;
}

std::vector<Parameter> Sequence::parameters() const {
  std::vector<Parameter> all;
  for (const Child& child : children_) {
    for (Parameter parameter : child.layer->parameters()) {
      parameter.name = joined(child.name, parameter.name);
      all.push_back(std::move(parameter));
    }
  }
  return all;
}

std::vector<State> Sequence::states() const {
  std::vector<State> all;
  for (const Child& child : children_) {
    for (State state : child.layer->states()) {
      state.name = joined(child.name, state.name);
      all.push_back(std::move(state));
    }
  }
  return all;
}

int Sequence::random_layers() const {
  return static_cast<int>(shares_.back().random_layer) + children_.back().layer->random_layers();
}

void Sequence::set_row_kernels(RowKernels kernels) {
  for (const Child& child : children_) child.layer->set_row_kernels(kernels);
}

ElementTypes Sequence::choose_types(ElementTypes offered) {
  std::vector<Layer*> layers;
  for (const Child& child : children_) layers.push_back(child.layer.get());
  const std::vector<ElementType> types = agree_on_types(layers, precision_, offered);
  boundaries_.assign(types.size(), {});
  for (std::size_t i = 0; i < types.size(); ++i) boundaries_[i].type = types[i];
  types_ = {types.front(), types.back()};
  return types_;
}

LayerPlan Sequence::plan(Device device, int threads, const Shape& input) {
  choose_types(types_);
  boundaries_[0].shape = input;
  LayerPlan plan;
  std::size_t child_workspace = 0;
  ArenaPlan stash;
  for (std::size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    child.layer->set_backward_split(split_);
    try {
      child.plan = child.layer->plan(device, threads, boundaries_[i].shape);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(child.name.empty() ? error.what()
                                                     : "layer '" + child.name + "': " + error.what());
    }
    boundaries_[i + 1].shape = child.plan.output;
    shares_[i].stash_offset = stash.reserve(child.plan.stash_bytes);
    child_workspace = std::max(child_workspace, child.plan.workspace_bytes);
    plan.random = plan.random || child.plan.random;
    plan.forward_flops += child.plan.forward_flops;
    plan.backward_flops += child.plan.backward_flops;
    plan.bytes += child.plan.bytes;
  }
  ArenaPlan workspace;
  place_activations(stash, workspace);
  place_gradients(stash, workspace);
  child_workspace_ = workspace.reserve(child_workspace);

  const bool input_needed = needs_input(children_.front().plan.needs);
  const bool output_needed = needs_output(children_.back().plan.needs);
  plan.needs = input_needed ? (output_needed ? Needs::kInputAndOutput : Needs::kInput)
                            : (output_needed ? Needs::kOutput : Needs::kNothing);
  plan.output = boundaries_.back().shape;
  plan.stash_bytes = stash.bytes();
  plan.workspace_bytes = workspace.bytes();
  return plan;
}

// The memory of the child's input is free for its output: in-place, and nobody reads that input in backward.
bool Sequence::output_shares_input(std::size_t child) const {
  return child > 0 && children_[child].plan.in_place &&
         boundaries_[child].type == boundaries_[child + 1].type &&
         !needs_output(children_[child - 1].plan.needs) && !needs_input(children_[child].plan.needs);
}

void Sequence::place_activations(ArenaPlan& stash, ArenaPlan& workspace) {
  const std::size_t last = children_.size();
  boundaries_[0].home = Home::kInput;
  boundaries_[last].home = Home::kOutput;
  for (std::size_t i = 0; i <= last; ++i) {
    const bool as_input = i < last && needs_input(children_[i].plan.needs);
    const bool as_output = i > 0 && needs_output(children_[i - 1].plan.needs);
    boundaries_[i].kept = as_input || as_output;
  }
  // A run of boundaries joined by in-place layers is one piece of memory; it is kept when any of them is. A
  // run that ends in the output lies there.
  std::size_t scratch = 0;  // each transient piece takes one of two regions of the largest size
  for (std::size_t i = 1; i < last; ++i) {
    if (!boundaries_[i].kept) scratch = std::max(scratch, boundaries_[i].bytes());
  }
  std::size_t regions[2] = {0, 0};
  bool regions_reserved = false;
  std::size_t turn = 0;
  for (std::size_t begin = 1; begin < last;) {
    std::size_t end = begin + 1;
    while (end <= last && output_shares_input(end - 1)) ++end;  // run is [begin, end)
    bool kept = false;
    for (std::size_t i = begin; i < end; ++i) kept = kept || boundaries_[i].kept;
    Boundary& first = boundaries_[begin];
    if (end == last + 1) {
      first.home = Home::kOutput;
    } else if (kept) {
      first.home = Home::kStash;
      first.offset = stash.reserve(first.bytes());
    } else {
      if (!regions_reserved) {
        regions[0] = workspace.reserve(scratch);
        regions[1] = workspace.reserve(scratch);
        regions_reserved = true;
      }
      first.home = Home::kWorkspace;
      first.offset = regions[turn];
      turn = 1 - turn;
    }
    for (std::size_t i = begin + 1; i < end; ++i) {
      boundaries_[i].home = first.home;
      boundaries_[i].offset = first.offset;
    }
    begin = end;
  }
}

void Sequence::place_gradients(ArenaPlan& stash, ArenaPlan& workspace) {
  const std::size_t last = children_.size();
  boundaries_[0].gradient_home = Home::kInput;
  boundaries_[last].gradient_home = Home::kOutput;
  std::size_t scratch = 0;
  for (std::size_t i = 1; i < last; ++i) scratch = std::max(scratch, boundaries_[i].bytes());
  const bool split = split_ == BackwardSplit::kSplit;
  std::size_t regions[2] = {0, 0};
  if (!split && last > 1) {
    regions[0] = workspace.reserve(scratch);
    regions[1] = workspace.reserve(scratch);
  }
  std::size_t turn = 0;
  for (std::size_t i = last - 1; i >= 1; --i) {
    Boundary& here = boundaries_[i];
    const Boundary& behind = boundaries_[i + 1];
    // backward_weights still reads the output gradient, so a layer with parameters keeps the two apart.
    const bool in_place =
        children_[i].plan.in_place && shares_[i].parameters == 0 && here.type == behind.type;
    if (in_place && behind.gradient_home != Home::kOutput) {
      here.gradient_home = behind.gradient_home;
      here.gradient_offset = behind.gradient_offset;
      continue;
    }
    here.gradient_home = split ? Home::kStash : Home::kWorkspace;
    here.gradient_offset = split ? stash.reserve(here.bytes()) : regions[turn];
    turn = 1 - turn;
  }
}

Tensor Sequence::value(const Boundary& boundary, const Tensor& input, const Tensor& output, std::byte* stash,
                       std::byte* workspace) {
  switch (boundary.home) {
    case Home::kInput:
      return {input.data, boundary.shape, input.rounded};
    case Home::kOutput:  // also of boundaries whose memory is the output's
      return {output.data, boundary.shape, output.rounded};
    case Home::kStash:
      return Tensor::at(stash + boundary.offset, boundary.type, boundary.shape);
    case Home::kWorkspace:
      return Tensor::at(workspace + boundary.offset, boundary.type, boundary.shape);
  }
  throw std::logic_error("a boundary without a home");
}

void Sequence::forward(const ForwardContext& context) const {
  const Tensor input = unprotected(context.input);  // only read: no child writes boundary 0
  const auto at = [&](std::size_t i) {
    return value(boundaries_[i], input, context.output, context.stash, context.workspace);
  };
  for (std::size_t i = 0; i < children_.size(); ++i) {
    const Share& share = shares_[i];
    RandomKey random = context.random;
    random.layer += share.random_layer;
    children_[i].layer->forward({.stream = context.stream,
                                 .weights = context.weights.slice(share.first_parameter, share.parameters),
                                 .states = slice(context.states, share.first_state, share.states),
                                 .input = at(i),
                                 .output = at(i + 1),
                                 .stash = context.stash + share.stash_offset,
                                 .workspace = context.workspace + child_workspace_,
                                 .mode = context.mode,
                                 .random = random});
  }
}

Tensor Sequence::gradient(const Boundary& boundary, const BackwardContext& context) {
  switch (boundary.gradient_home) {
    case Home::kInput:
      return context.input_gradient;
    case Home::kOutput:
      return unprotected(context.output_gradient);  // in-place layers never write it: see plan
    case Home::kStash:
      return Tensor::at(context.stash + boundary.gradient_offset, boundary.type, boundary.shape);
    case Home::kWorkspace:
      return Tensor::at(context.workspace + boundary.gradient_offset, boundary.type, boundary.shape);
  }
  throw std::logic_error("a gradient without a home");
}

// Where nobody wants the gradient of the input, those in front of the first child with parameters are of no
// use, either.
std::size_t Sequence::last_in_backward(const BackwardContext& context) const {
  return context.input_gradient.there() ? 0 : first_trained_;
}

BackwardContext Sequence::child_context(std::size_t i, const BackwardContext& context) const {
  const Share& share = shares_[i];
  const LayerPlan& plan = children_[i].plan;
  const Tensor input = unprotected(context.input), output = unprotected(context.output);
  const auto at = [&](std::size_t boundary, bool needed) {
    if (!needed) return ConstTensor(nullptr, boundaries_[boundary].shape);
    return ConstTensor(value(boundaries_[boundary], input, output, context.stash, context.workspace));
  };
  const bool wanted = i > last_in_backward(context) || context.input_gradient.there();
  RandomKey random = context.random;
  random.layer += share.random_layer;
  const WeightGradients gradients{slice(context.gradients.pointers, share.first_parameter, share.parameters),
                                  context.gradients.mode};
  return {.stream = context.stream,
          .weights = context.weights.slice(share.first_parameter, share.parameters),
          .gradients = gradients,
          .input = at(i, needs_input(plan.needs)),
          .output = at(i + 1, needs_output(plan.needs)),
          .output_gradient = gradient(boundaries_[i + 1], context),
          .input_gradient =
              wanted ? gradient(boundaries_[i], context) : Tensor{nullptr, boundaries_[i].shape, nullptr},
          .stash = context.stash + share.stash_offset,
          .workspace = context.workspace + child_workspace_,
          .random = random};
}

void Sequence::backward(const BackwardContext& context) const {
  for (std::size_t i = children_.size(); i-- > last_in_backward(context);)
    children_[i].layer->backward(child_context(i, context));
}

void Sequence::backward_input(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) {
    throw std::logic_error("a joined sequence keeps no gradients between its layers: call backward()");
  }
  for (std::size_t i = children_.size(); i-- > last_in_backward(context);)
    children_[i].layer->backward_input(child_context(i, context));
}

void Sequence::backward_weights(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) {
    throw std::logic_error("a joined sequence keeps no gradients between its layers: call backward()");
  }
  for (std::size_t i = children_.size(); i-- > last_in_backward(context);)
    children_[i].layer->backward_weights(child_context(i, context));
}

}  // namespace pipeoptim
