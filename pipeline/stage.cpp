#include "pipeline/stage.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "layers/provider.h"

namespace pipeoptim {
namespace {

constexpr std::int64_t kPadding =
    kAlignment / sizeof(float);  // elements: every tensor starts on a cache line

std::int64_t padded(std::int64_t elements) { return (elements + kPadding - 1) / kPadding * kPadding; }

// The optimizer's products of matrices are made by whom the layers have theirs from.
void multiply(Stream& stream, const MatrixProduct& product) {
  using Flip = MatrixProduct::Flip;
  gemm(stream, {.transpose_a = product.flip == Flip::kA ? Transpose::kYes : Transpose::kNo,
                .transpose_b = product.flip == Flip::kB ? Transpose::kYes : Transpose::kNo,
                .rows = product.rows,
                .columns = product.columns,
                .inner = product.inner,
                .a = product.a,
                .b = product.b,
                .c = product.c,
                .alpha = product.alpha,
                .beta = product.beta});
}

}  // namespace

Stage::Stage(StageOptions options, std::vector<NamedLayer> layers) : options_(std::move(options)) {
  layers_ = std::make_unique<Sequence>(std::move(layers), options_.split);
  layers_->set_precision(options_.precision);
  plan_ = layers_->plan(options_.device, options_.threads, options_.input);
  place_tensors();

  ArenaPlan slot;
  input_offset_ = slot.reserve(float_bytes(options_.input.elements()));
  output_offset_ = slot.reserve(float_bytes(plan_.output.elements()));
  input_gradient_offset_ = slot.reserve(options_.index == 0 ? 0 : float_bytes(options_.input.elements()));
  output_gradient_offset_ = slot.reserve(float_bytes(plan_.output.elements()));
  stash_offset_ = slot.reserve(plan_.stash_bytes);
  slot_bytes_ = slot.bytes();
}

// Decaying parameters first, so that each parameter group is one contiguous range and one launch.
void Stage::place_tensors() {
  for (const Parameter& parameter : layers_->parameters()) {
    parameters_.push_back({{parameter.name, parameter.shape, true, options_.index, parameter.initializer},
                           0,
                           parameter.storage});
  }
  const std::vector<Parameter> declared = layers_->parameters();
  for (const Decay group : {Decay::kYes, Decay::kNo}) {
    for (std::size_t i = 0; i < declared.size(); ++i) {
      if (declared[i].decay != group) continue;
      parameters_[i].offset = parameter_elements_;
      parameter_elements_ += padded(declared[i].shape.elements());
    }
    if (group == Decay::kYes) decaying_elements_ = parameter_elements_;
  }
  for (const State& state : layers_->states()) {
    const Initializer initial{Initializer::Kind::kConstant, state.initial};
    states_.push_back(
        {{state.name, state.shape, false, options_.index, initial}, state_elements_, Storage::kRowMajor});
    state_elements_ += padded(state.shape.elements());
  }
}

OptimizerArena Stage::optimizer_arena() const {
  OptimizerArena arena;
  arena.elements = parameter_elements_;
  arena.groups.reserve(2);
  if (decaying_elements_ > 0) arena.groups.push_back({0, decaying_elements_, true});
  if (parameter_elements_ > decaying_elements_) {
    arena.groups.push_back({decaying_elements_, parameter_elements_, false});
  }
  for (const PlacedTensor& placed : parameters_) {
    const Shape& shape = placed.tensor.shape;
    // A convolution's weight is a matrix of its outputs, in whichever order its columns lie.
    arena.names.push_back({placed.tensor.name, placed.offset, placed.offset + shape.elements(),
                           shape.rank() >= 2 ? shape[0] : 0});
  }
  return arena;
}

void Stage::allocate() {
  if (slots_ || weights_.data()) return;
  const Device device = options_.device;
  const auto elements = static_cast<std::size_t>(parameter_elements_);
  weights_ = Buffer<float>(device, elements);
  gradients_ = Buffer<float>(device, elements);
  for (int i = 0; i < options_.predicted_slots; ++i) predicted_.emplace_back(device, elements);
  for (int i = 0; i < options_.version_slots; ++i) versions_.emplace_back(device, elements);
  state_values_ = Buffer<float>(device, static_cast<std::size_t>(state_elements_));
  slots_ = Memory(device, slot_bytes_ * static_cast<std::size_t>(options_.slots));
  workspace_ = Memory(device, plan_.workspace_bytes);
  if (parameter_elements_ > 0) {
    optimizer_ = make_optimizer(device, options_.optimizer, optimizer_arena(), multiply);
  }

  const auto pointers_into = [&](const Buffer<float>& copy) {
    std::vector<const float*> pointers;
    for (const PlacedTensor& placed : parameters_) pointers.push_back(copy.data() + placed.offset);
    return pointers;
  };
  live_pointers_ = pointers_into(weights_);
  for (const Buffer<float>& copy : predicted_) predicted_pointers_.push_back(pointers_into(copy));
  for (const Buffer<float>& copy : versions_) version_pointers_.push_back(pointers_into(copy));
  for (const PlacedTensor& placed : parameters_)
    gradient_pointers_.push_back(gradients_.data() + placed.offset);
  for (const PlacedTensor& placed : states_) state_pointers_.push_back(state_values_.data() + placed.offset);
}

StageMemory Stage::memory() const {
  const std::size_t copy = float_bytes(parameter_elements_);
  const auto slots = static_cast<std::size_t>(options_.slots);
  StageMemory memory;
  memory.weights = copy;
  memory.gradients = copy;
  memory.optimizer = parameter_elements_ == 0
                         ? 0
                         : copy * static_cast<std::size_t>(optimizer_slots(options_.optimizer)) +
                               optimizer_workspace_bytes(options_.optimizer, optimizer_arena());
  memory.predicted = copy * static_cast<std::size_t>(options_.predicted_slots);
  memory.versions = copy * static_cast<std::size_t>(options_.version_slots);
  memory.states = float_bytes(state_elements_);
  memory.stash = slots * (slot_bytes_ - stash_offset_);
  memory.transfers = slots * stash_offset_;
  memory.workspace = plan_.workspace_bytes;
  return memory;
}

std::span<const float* const> Stage::pointers(const Pass& pass) const {
  switch (pass.source) {
    case WeightSource::kLive:
      return live_pointers_;
    case WeightSource::kPredicted:
      return predicted_pointers_.at(static_cast<std::size_t>(pass.predicted_slot));
    case WeightSource::kVersion:
      return version_pointers_.at(static_cast<std::size_t>(pass.version_slot));
  }
  throw std::logic_error("unknown weight source");
}

void Stage::forward(Stream& stream, const Pass& pass) const {
  layers_->forward({.stream = stream,
                    .weights = {pointers(pass)},
                    .states = state_pointers_,
                    .input = ConstTensor(input(pass.slot), options_.input),
                    .output = {output(pass.slot), plan_.output},
                    .stash = slot_memory<std::byte>(pass.slot, stash_offset_),
                    .workspace = workspace_.data(),
                    .mode = pass.mode,
                    .random = {options_.seed, pass.microbatch, options_.first_random_layer}});
}

void Stage::backward(Stream& stream, const Pass& pass, Part part) const {
  const BackwardContext context{
      .stream = stream,
      .weights = {pointers(pass)},
      .gradients = {gradient_pointers_, pass.gradients},
      .input = ConstTensor(input(pass.slot), options_.input),
      .output = ConstTensor(output(pass.slot), plan_.output),
      .output_gradient = ConstTensor(output_gradient(pass.slot), plan_.output),
      .input_gradient = {pass.wants_input_gradient ? input_gradient(pass.slot) : nullptr, options_.input},
      .stash = slot_memory<std::byte>(pass.slot, stash_offset_),
      .workspace = workspace_.data(),
      .random = {options_.seed, pass.microbatch, options_.first_random_layer}};
  switch (part) {
    case Part::kBoth:
      return layers_->backward(context);
    case Part::kInput:
      return layers_->backward_input(context);
    case Part::kWeights:
      return layers_->backward_weights(context);
  }
}

void Stage::update(Stream& stream, float lr) {
  if (optimizer_) optimizer_->update(stream, weights_.data(), gradients_.data(), lr);
}

void Stage::predict(Stream& stream, int predicted_slot, Lookahead ahead) {
  if (!optimizer_) return;
  optimizer_->predict(stream, weights_.data(), predicted_.at(static_cast<std::size_t>(predicted_slot)).data(),
                      ahead);
}

void Stage::update_predict(Stream& stream, float lr, int predicted_slot, Lookahead ahead) {
  if (!optimizer_) return;
  optimizer_->update_predict(stream, weights_.data(), gradients_.data(), lr,
                             predicted_.at(static_cast<std::size_t>(predicted_slot)).data(), ahead);
}

void Stage::stash_weights(Stream& stream, int version_slot) {
  stream.copy(versions_.at(static_cast<std::size_t>(version_slot)).data(), weights_.data(),
              float_bytes(parameter_elements_));
}

}  // namespace pipeoptim
