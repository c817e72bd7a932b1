// One layer on its own: memory for everything its plan asks for, and the three calls, in and out of
// std::vector.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "layers/layer.h"
#include "tests/support/bf16.h"

namespace pipeoptim::test {

inline std::vector<float> random_values(std::int64_t count, unsigned seed, float deviation = 1.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

class LayerRun {
 public:
  // Tensors are of the types that the layer chooses; here their values are fp32.
  LayerRun(Layer& layer, const Shape& input, int threads, Device device = Device::host(),
           ElementTypes offered = {})
      : device_(device),
        layer_(layer),
        types_(layer.choose_types(offered)),
        input_shape_(input),
        stream_(device_, {.threads = threads}),
        plan_(layer.plan(device_, threads, input)),
        input_(device_, size(input)),
        output_(device_, size(plan_.output)),
        output_gradient_(device_, size(plan_.output)),
        input_gradient_(device_, size(input)),
        stash_(device_, plan_.stash_bytes),
        workspace_(device_, plan_.workspace_bytes + kGuardBytes) {
    const std::vector<std::byte> guard(kGuardBytes, kGuard);
    copy_from_host(workspace_.data() + plan_.workspace_bytes, guard.data(), kGuardBytes, device_);
    for (const Parameter& parameter : layer.parameters()) {
      weights_.emplace_back(device_, size(parameter.shape));
      gradients_.emplace_back(device_, size(parameter.shape));
    }
    for (const State& state : layer.states()) {
      states_.emplace_back(device_, size(state.shape));
      put(states_.back(), std::vector<float>(states_.back().size(), state.initial));
      state_pointers_.push_back(states_.back().data());
    }
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      weight_pointers_.push_back(weights_[i].data());
      rounded_pointers_.push_back(nullptr);
      gradient_pointers_.push_back(gradients_[i].data());
    }
  }

  // Vendor code that writes behind the workspace it asked for shows here, as no sanitizer sees it.
  ~LayerRun() {
    std::vector<std::byte> guard(kGuardBytes);
    copy_to_host(guard.data(), workspace_.data() + plan_.workspace_bytes, kGuardBytes, device_);
    EXPECT_EQ(std::count(guard.begin(), guard.end(), kGuard), static_cast<std::ptrdiff_t>(kGuardBytes))
        << layer_.describe() << " wrote behind its workspace";
  }
  LayerRun(const LayerRun&) = delete;
  LayerRun& operator=(const LayerRun&) = delete;

  const LayerPlan& plan() const { return plan_; }
  const ElementTypes& types() const { return types_; }
  Stream& stream() { return stream_; }
  // In the arena's order.
  void set_parameter(std::size_t index, const std::vector<float>& values) { put(weights_.at(index), values); }
  // From here on the parameter is given as bf16 only.
  void give_rounded(std::size_t index, const std::vector<Bf16>& values) {
    rounded_.emplace_back(device_, values.size());
    copy_from_host(rounded_.back().data(), values.data(), values.size() * sizeof(Bf16), device_);
    rounded_pointers_.at(index) = rounded_.back().data();
    weight_pointers_.at(index) = nullptr;
  }
  std::vector<float> gradient(std::size_t index) const { return get(gradients_.at(index)); }
  std::vector<float> state(std::size_t index) const { return get(states_.at(index)); }

  std::vector<float> forward(const std::vector<float>& input) {
    put(input_tensor(), input);
    std::vector<float> garbage(output_.size(), 1e30F);  // what a plan must overwrite
    put(output_tensor(), garbage);
    layer_.forward({.stream = stream_,
                    .weights = {weight_pointers_, rounded_pointers_},
                    .states = state_pointers_,
                    .input = input_tensor(),
                    .output = output_tensor(),
                    .stash = stash_.data(),
                    .workspace = workspace_.data(),
                    .random = {}});
    stream_.synchronize();
    return get(output_tensor());
  }

  // Of the latest forward. Returns the gradient of the input; those of the weights are read with gradient().
  std::vector<float> backward(const std::vector<float>& output_gradient,
                              GradientMode mode = GradientMode::kStore) {
    const Tensor from = Tensor::at(output_gradient_.data(), types_.output, plan_.output);
    const Tensor to = Tensor::at(input_gradient_.data(), types_.input, input_shape_);
    put(from, output_gradient);
    if (mode == GradientMode::kStore) {
      for (const auto& gradient : gradients_) put(gradient, std::vector<float>(gradient.size(), 1e30F));
    }
    put(to, std::vector<float>(input_gradient_.size(), 1e30F));
    const BackwardContext context{.stream = stream_,
                                  .weights = {weight_pointers_, rounded_pointers_},
                                  .gradients = {gradient_pointers_, mode},
                                  .input = input_tensor(),
                                  .output = output_tensor(),
                                  .output_gradient = from,
                                  .input_gradient = to,
                                  .stash = stash_.data(),
                                  .workspace = workspace_.data(),
                                  .random = {}};
    if (gradients_apart) {
      layer_.backward_input(context);
      layer_.backward_weights(context);
    } else {
      layer_.backward(context);
    }
    stream_.synchronize();
    return get(to);
  }

  bool gradients_apart = false;  // whether backward() asks for the two one after the other

 private:
  static constexpr std::size_t kGuardBytes = 16384;
  static constexpr std::byte kGuard{0xA5};

  static std::size_t size(const Shape& shape) { return static_cast<std::size_t>(shape.elements()); }
  static Tensor tensor(const Buffer<float>& buffer) {
    return {buffer.data(), {static_cast<std::int64_t>(buffer.size())}};
  }
  void put(const Buffer<float>& to, const std::vector<float>& values) const { put(tensor(to), values); }
  std::vector<float> get(const Buffer<float>& from) const { return get(tensor(from)); }
  Tensor input_tensor() const { return Tensor::at(input_.data(), types_.input, input_shape_); }
  Tensor output_tensor() const { return Tensor::at(output_.data(), types_.output, plan_.output); }
  void put(const Tensor& to, const std::vector<float>& values) const {
    if (static_cast<std::int64_t>(values.size()) != to.elements()) {
      throw std::invalid_argument("LayerRun: wrong number of values");
    }
    const std::vector<Bf16> rounded = to.rounded != nullptr ? bf16_copy(values) : std::vector<Bf16>();
    const void* const from = to.rounded != nullptr ? static_cast<const void*>(rounded.data()) : values.data();
    copy_from_host(to.memory(), from, to.bytes(), device_);
  }
  std::vector<float> get(const Tensor& from) const {
    std::vector<float> values(static_cast<std::size_t>(from.elements()));
    if (from.rounded == nullptr) {
      copy_to_host(values.data(), from.memory(), from.bytes(), device_);
      return values;
    }
    std::vector<Bf16> rounded(values.size());
    copy_to_host(rounded.data(), from.memory(), from.bytes(), device_);
    std::transform(rounded.begin(), rounded.end(), values.begin(),
                   [](Bf16 value) { return to_float(value); });
    return values;
  }

  Device device_;
  Layer& layer_;
  ElementTypes types_;
  Shape input_shape_;
  Stream stream_;
  LayerPlan plan_;
  Buffer<float> input_, output_, output_gradient_, input_gradient_;
  Memory stash_, workspace_;
  std::vector<Buffer<float>> weights_, gradients_, states_;
  std::vector<Buffer<Bf16>> rounded_;
  std::vector<const float*> weight_pointers_;
  std::vector<const Bf16*> rounded_pointers_;
  std::vector<float*> state_pointers_;
  std::vector<float*> gradient_pointers_;
};

// The largest |a - b| against what the sums that made `expected` can lose: `magnitudes` are the sums of the
// absolute values of their terms.
inline double largest_error(const std::vector<float>& values, const std::vector<double>& expected,
                            const std::vector<double>& magnitudes) {
  double largest = values.size() == expected.size() ? 0 : 1e30;
  for (std::size_t i = 0; i < expected.size() && i < values.size(); ++i) {
    const double error = std::abs(static_cast<double>(values[i]) - expected[i]);
    largest = std::max(largest, error / std::max(magnitudes[i], 1e-30));
    if (!(error < 1e29)) largest = 1e30;
  }
  return largest;
}

// sum(values * by), in double: a loss whose gradient with respect to `values` is `by`.
inline double weighted_sum(const std::vector<float>& values, const std::vector<float>& by) {
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += static_cast<double>(values[i]) * by[i];
  return sum;
}

}  // namespace pipeoptim::test
