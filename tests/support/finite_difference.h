// Gradients of a layer against central differences of its forward.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "tests/support/planned_layer.h"

namespace pipeoptim::test {

// d f / d x[i] for every i by the five-point stencil: its own error is the fifth derivative's, step^4 / 30.
inline std::vector<double> differences(std::span<float> x, const std::function<double()>& f,
                                       float step = 0.03125F) {
  std::vector<double> slopes;
  for (float& value : x) {
    const float centre = value;
    const auto at = [&](float distance) {
      value = centre + distance * step;
      return f();
    };
    // The steps that fp32 really made.
    const double near = static_cast<double>(centre + step) - static_cast<double>(centre - step);
    const double far = static_cast<double>(centre + 2 * step) - static_cast<double>(centre - 2 * step);
    const double inner = (at(1) - at(-1)) / near;
    const double outer = (at(2) - at(-2)) / far;
    value = centre;
    slopes.push_back((4 * inner - outer) / 3);
  }
  return slopes;
}

// The largest error of any gradient of `layer` at `input`, relative to that tensor's largest gradient (at
// least 1). The loss is a fixed random weighting of the output. `input` must keep 2 steps from kinks.
inline double gradient_error(PlannedLayer& layer, std::vector<float> input) {
  const std::vector<float> by = random_values(layer.plan().output.elements(), 77);
  const auto loss = [&] { return weighted_sum(layer.forward(input), by); };
  loss();
  const std::vector<float> input_gradient = layer.backward(by);
  const std::vector<std::vector<float>> gradients = layer.all_gradients();
  double largest = relative_error(input_gradient, differences(input, loss));
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    largest = std::max(largest, relative_error(gradients[i], differences(layer.weights(i), loss)));
  }
  return largest;
}

}  // namespace pipeoptim::test
