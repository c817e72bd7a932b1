// A layer with everything a stage would give it, for any number of micro-batches in flight. What the plan
// does not promise is poisoned: workspace, stash and results hold NaN before each call, and backward gets
// only what the plan's `needs` asks for.
#pragma once

#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "layers/layer.h"
#include "tests/support/layer_run.h"

namespace pipeoptim::test {

struct PlannedOptions {
  int threads = 1;
  int slots = 1;
  std::uint64_t random_layer = 0;
  bool in_place = false;  // output over input, input gradient over output gradient
  BackwardSplit split = BackwardSplit::kJoined;
};

class PlannedLayer {
 public:
  PlannedLayer(LayerPtr layer, const Shape& input, PlannedOptions options = {})
      : layer_(std::move(layer)),
        options_(options),
        input_shape_(input),
        stream_(device_, {.threads = options.threads, .execution = HostExecution::kInline}) {
    layer_->set_backward_split(options.split);
    plan_ = layer_->plan(device_, options.threads, input);
    workspace_ = Memory(device_, plan_.workspace_bytes);
    for (int i = 0; i < options.slots; ++i) {
      Slot slot{Buffer<float>(device_, size(input)), Buffer<float>(device_, size(plan_.output)),
                Memory(device_, plan_.stash_bytes)};
      slots_.push_back(std::move(slot));
    }
    output_gradient_ = Buffer<float>(device_, size(plan_.output));
    input_gradient_ = Buffer<float>(device_, size(input));
    unsigned seed = 100;
    for (const Parameter& parameter : layer_->parameters()) {
      weights_.push_back(random_values(parameter.shape.elements(), seed++, 0.5F));
      gradients_.emplace_back(weights_.back().size(), kPoison);
    }
    for (const State& state : layer_->states()) states_.emplace_back(size(state.shape), state.initial);
    for (auto& values : weights_) weight_pointers_.push_back(values.data());
    for (auto& values : gradients_) gradient_pointers_.push_back(values.data());
    for (auto& values : states_) state_pointers_.push_back(values.data());
  }

  static constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

  const LayerPlan& plan() const { return plan_; }
  const Layer& layer() const { return *layer_; }
  const Shape& input_shape() const { return input_shape_; }
  std::span<float> weights(std::size_t i) { return weights_.at(i); }
  std::size_t parameters() const { return weights_.size(); }
  const std::vector<float>& gradients(std::size_t i) const { return gradients_.at(i); }
  const std::vector<std::vector<float>>& all_gradients() const { return gradients_; }
  std::span<float> states(std::size_t i) { return states_.at(i); }

  // The slot's number is also the micro-batch's, for the random numbers.
  std::vector<float> forward(const std::vector<float>& input, Mode mode = Mode::kTraining, int at = 0) {
    Slot& slot = slots_.at(static_cast<std::size_t>(at));
    poison(slot.stash);
    poison(workspace_);
    fill(slot.output, kPoison);
    write(slot.input, input);
    float* output = options_.in_place ? slot.input.data() : slot.output.data();
    layer_->forward({.stream = stream_,
                     .weights = {weight_pointers_},
                     .states = state_pointers_,
                     .input = {slot.input.data(), input_shape_},
                     .output = {output, plan_.output},
                     .stash = slot.stash.data(),
                     .workspace = workspace_.data(),
                     .mode = mode,
                     .random = random(at)});
    stream_.synchronize();
    return {output, output + slot.output.size()};
  }

  enum class Part { kBoth, kInput, kWeights };
  // Returns the input gradient. In split mode kInput and kWeights are called apart, with their own
  // `output_gradient` each.
  std::vector<float> backward(const std::vector<float>& output_gradient,
                              GradientMode mode = GradientMode::kStore, int at = 0, Part part = Part::kBoth) {
    Slot& slot = slots_.at(static_cast<std::size_t>(at));
    poison(workspace_);
    write(output_gradient_, output_gradient);
    fill(input_gradient_, kPoison);
    if (mode == GradientMode::kStore && part != Part::kInput) {
      for (auto& values : gradients_) std::fill(values.begin(), values.end(), kPoison);
    }
    float* output = options_.in_place ? slot.input.data() : slot.output.data();
    float* input_gradient = options_.in_place ? output_gradient_.data() : input_gradient_.data();
    const BackwardContext context{
        .stream = stream_,
        .weights = {weight_pointers_},
        .gradients = {gradient_pointers_, mode},
        .input = {needs_input(plan_.needs) ? slot.input.data() : nullptr, input_shape_},
        .output = {needs_output(plan_.needs) ? output : nullptr, plan_.output},
        .output_gradient = {output_gradient_.data(), plan_.output},
        .input_gradient = {wants_input_gradient ? input_gradient : nullptr, input_shape_},
        .stash = slot.stash.data(),
        .workspace = workspace_.data(),
        .random = random(at)};
    if (part == Part::kBoth) layer_->backward(context);
    if (part == Part::kInput) layer_->backward_input(context);
    if (part == Part::kWeights) layer_->backward_weights(context);
    stream_.synchronize();
    return {input_gradient, input_gradient + input_gradient_.size()};
  }

  bool wants_input_gradient = true;

 private:
  struct Slot {
    Buffer<float> input, output;
    Memory stash;
  };
  static std::size_t size(const Shape& shape) { return static_cast<std::size_t>(shape.elements()); }
  static void poison(const Memory& memory) {
    if (memory.bytes() > 0) std::memset(memory.data(), 0xFF, memory.bytes());
  }
  static void fill(const Buffer<float>& buffer, float value) {
    std::fill(buffer.data(), buffer.data() + buffer.size(), value);
  }
  static void write(const Buffer<float>& to, const std::vector<float>& values) {
    if (values.size() != to.size()) throw std::invalid_argument("PlannedLayer: wrong number of values");
    std::copy(values.begin(), values.end(), to.data());
  }
  RandomKey random(int at) const { return {5, static_cast<std::uint64_t>(at), options_.random_layer}; }

  Device device_ = Device::host();
  LayerPtr layer_;
  PlannedOptions options_;
  Shape input_shape_;
  Stream stream_;
  LayerPlan plan_;
  Memory workspace_;
  std::vector<Slot> slots_;
  Buffer<float> output_gradient_, input_gradient_;
  std::vector<std::vector<float>> weights_, gradients_, states_;
  std::vector<const float*> weight_pointers_;
  std::vector<float*> gradient_pointers_, state_pointers_;
};

template <typename L, typename... Arguments>
PlannedLayer planned(const Shape& input, PlannedOptions options, Arguments&&... arguments) {
  return {std::make_unique<L>(std::forward<Arguments>(arguments)...), input, options};
}

// Bit for bit, so that -0 differs from 0 and a NaN equals itself.
inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// The largest |value - expected|, relative to the largest expected value (at least 1).
inline double relative_error(std::span<const float> values, const std::vector<double>& expected) {
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  return largest_error({values.begin(), values.end()}, expected, std::vector<double>(expected.size(), scale));
}

}  // namespace pipeoptim::test
