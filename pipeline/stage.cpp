#include "pipeline/stage.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "layers/provider.h"

namespace pipeoptim {
namespace {

// Every tensor starts at a multiple of kAlignment, also where it is in bf16.
template <typename T = float>
std::int64_t padded(std::int64_t elements) {
  constexpr std::int64_t kPadding = kAlignment / sizeof(T);
  return (elements + kPadding - 1) / kPadding * kPadding;
}

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
  layers_->set_row_kernels(options_.row_kernels);
  if (!(layers_->choose_types(options_.types) == options_.types)) {
    throw std::logic_error("stage " + std::to_string(options_.index) +
                           ": its layers do not agree to the types of its ends");
  }
  plan_ = layers_->plan(options_.device, options_.threads, options_.input);
  place_tensors();

  ArenaPlan slot;
  const std::size_t in = tensor_bytes(options_.input, options_.types.input),
                    out = tensor_bytes(plan_.output, options_.types.output);
  input_offset_ = slot.reserve(in);
  output_offset_ = slot.reserve(out);
  input_gradient_offset_ = slot.reserve(options_.index == 0 ? 0 : in);
  output_gradient_offset_ = slot.reserve(out);
  stash_offset_ = slot.reserve(plan_.stash_bytes);
  slot_bytes_ = slot.bytes();
}

// What predicted copies hold in bf16 comes first, and of each part the decaying parameters, so that both are
// contiguous ranges.
void Stage::place_tensors() {
  for (const Parameter& parameter : layers_->parameters()) {
    parameters_.push_back({{parameter.name, parameter.shape, true, options_.index, parameter.initializer},
                           0,
                           parameter.storage});
  }
  const std::vector<Parameter> declared = layers_->parameters();
  const bool rounds = options_.precision == MatrixPrecision::kBf16 && options_.predicted_slots > 0;
  for (const bool rounded : {true, false}) {
    for (const Decay decay : {Decay::kYes, Decay::kNo}) {
      const std::int64_t begin = parameter_elements_;
      for (std::size_t i = 0; i < declared.size(); ++i) {
        if (declared[i].decay != decay || (rounds && declared[i].may_be_rounded) != rounded) continue;
        const std::int64_t elements = declared[i].shape.elements();
        parameters_[i].offset = parameter_elements_;
        parameter_elements_ += rounded ? padded<Bf16>(elements) : padded(elements);
      }
      if (parameter_elements_ > begin) {
        groups_.push_back({begin, parameter_elements_, decay == Decay::kYes});
      }
    }
    if (rounded) rounded_elements_ = parameter_elements_;
  }
  for (const State& state : layers_->states()) {
    const Initializer initial{Initializer::Kind::kConstant, state.initial};
    states_.push_back(
        {{state.name, state.shape, false, options_.index, initial}, state_elements_, Storage::kRowMajor});
    state_elements_ += padded(state.shape.elements());
  }
}

OptimizerArena Stage::optimizer_arena() const {
  OptimizerArena arena{
      .elements = parameter_elements_, .groups = groups_, .rounded_elements = rounded_elements_};
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
  for (int i = 0; i < options_.version_slots; ++i) versions_.emplace_back(device, elements);
  state_values_ = Buffer<float>(device, static_cast<std::size_t>(state_elements_));
  slots_ = Memory(device, slot_bytes_ * static_cast<std::size_t>(options_.slots));
  workspace_ = Memory(device, plan_.workspace_bytes);
  if (parameter_elements_ > 0) {
    optimizer_ = make_optimizer(device, options_.optimizer, optimizer_arena(), multiply);
  }

  live_pointers_ = pointers_into(weights_.data());
  for (int i = 0; i < options_.predicted_slots; ++i) {
    predicted_.push_back({Memory(device, predicted_bytes()), {}});
    predicted_.back().pointers = pointers_into(predicted(i));
  }
  for (const Buffer<float>& copy : versions_) version_pointers_.push_back(pointers_into(copy.data()));
  for (const PlacedTensor& placed : parameters_)
    gradient_pointers_.push_back(gradients_.data() + placed.offset);
  for (const PlacedTensor& placed : states_) state_pointers_.push_back(state_values_.data() + placed.offset);
}

std::size_t Stage::predicted_bytes() const {
  return static_cast<std::size_t>(rounded_elements_) * sizeof(Bf16) +
         float_bytes(parameter_elements_ - rounded_elements_);
}

PredictedWeights Stage::predicted(int slot) const {
  std::byte* const memory = predicted_.at(static_cast<std::size_t>(slot)).memory.data();
  if (rounded_elements_ == 0) return floats_at(memory, 0);
  const auto rounded = reinterpret_cast<Bf16*>(memory);
  return {reinterpret_cast<float*>(rounded + rounded_elements_), rounded};
}

Stage::Pointers Stage::pointers_into(const float* copy) const {
  Pointers pointers;
  for (const PlacedTensor& placed : parameters_) pointers.values.push_back(copy + placed.offset);
  return pointers;
}

Stage::Pointers Stage::pointers_into(const PredictedWeights& copy) const {
  if (rounded_elements_ == 0) return pointers_into(copy.values);
  Pointers pointers;
  for (const PlacedTensor& placed : parameters_) {
    const bool rounded = placed.offset < rounded_elements_;
    pointers.values.push_back(rounded ? nullptr : copy.values + (placed.offset - rounded_elements_));
    pointers.rounded.push_back(rounded ? copy.rounded + placed.offset : nullptr);
  }
  return pointers;
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
  memory.predicted = predicted_bytes() * static_cast<std::size_t>(options_.predicted_slots);
  memory.versions = copy * static_cast<std::size_t>(options_.version_slots);
  memory.states = float_bytes(state_elements_);
  memory.stash = slots * (slot_bytes_ - stash_offset_);
  memory.transfers = slots * stash_offset_;
  memory.workspace = plan_.workspace_bytes;
  return memory;
}

const Stage::Pointers& Stage::pointers(const Pass& pass) const {
  switch (pass.source) {
    case WeightSource::kLive:
      return live_pointers_;
    case WeightSource::kPredicted:
      return predicted_.at(static_cast<std::size_t>(pass.predicted_slot)).pointers;
    case WeightSource::kVersion:
      return version_pointers_.at(static_cast<std::size_t>(pass.version_slot));
  }
  throw std::logic_error("unknown weight source");
}

void Stage::forward(Stream& stream, const Pass& pass) const {
  const Pointers& weights = pointers(pass);
  layers_->forward({.stream = stream,
                    .weights = {weights.values, weights.rounded},
                    .states = state_pointers_,
                    .input = input(pass.slot),
                    .output = output(pass.slot),
                    .stash = slot_memory(pass.slot, stash_offset_),
                    .workspace = workspace_.data(),
                    .mode = pass.mode,
                    .random = {options_.seed, pass.microbatch, options_.first_random_layer}});
}

void Stage::backward(Stream& stream, const Pass& pass, Part part) const {
  const Pointers& weights = pointers(pass);
  const BackwardContext context{.stream = stream,
                                .weights = {weights.values, weights.rounded},
                                .gradients = {gradient_pointers_, pass.gradients},
                                .input = input(pass.slot),
                                .output = output(pass.slot),
                                .output_gradient = output_gradient(pass.slot),
                                .input_gradient = pass.wants_input_gradient ? input_gradient(pass.slot)
                                                                            : Tensor{nullptr, options_.input},
                                .stash = slot_memory(pass.slot, stash_offset_),
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
  if (optimizer_) optimizer_->predict(stream, weights_.data(), predicted(predicted_slot), ahead);
}

void Stage::update_predict(Stream& stream, float lr, int predicted_slot, Lookahead ahead) {
  if (!optimizer_) return;
  optimizer_->update_predict(stream, weights_.data(), gradients_.data(), lr, predicted(predicted_slot),
                             ahead);
}

StepRates Stage::step_rates(float lr, Lookahead ahead) const {
  return make_step_rates(options_.optimizer.predictor, lr, ahead);
}

void Stage::repeat(Stream& stream, const Step& step) {
  if (!optimizer_) return;
  RepeatedStep work{.weights = weights_.data(), .distance = step.distance, .rates = step.rates};
  if (is_update(step.op)) work.gradients = gradients_.data();
  if (step.op != Op::kUpdate) work.predicted = predicted(step.predicted_slot);
  optimizer_->repeat(stream, work);
}

void Stage::stash_weights(Stream& stream, int version_slot) {
  stream.copy(versions_.at(static_cast<std::size_t>(version_slot)).data(), weights_.data(),
              float_bytes(parameter_elements_));
}

}  // namespace pipeoptim
