// The two halves of a backward, far apart, against both at once.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "tests/support/planned_layer.h"

namespace pipeoptim::test {

// Two micro-batches through a split layer, all input gradients before any weight gradient, with the workspace
// overwritten in between; then the same through a joined one. Every bit must be the same.
inline void expect_same_halves(const std::function<LayerPtr()>& make, const Shape& shape,
                               const std::vector<float>& first, const std::vector<float>& second) {
  using Part = PlannedLayer::Part;
  PlannedLayer split(make(), shape, {.slots = 2, .split = BackwardSplit::kSplit});
  PlannedLayer joined(make(), shape, {.slots = 2});
  for (PlannedLayer* layer : {&split, &joined}) {
    layer->forward(first, Mode::kTraining, 0);
    layer->forward(second, Mode::kTraining, 1);
  }
  const std::int64_t elements = split.plan().output.elements();
  const auto dy = random_values(elements, 41), other = random_values(elements, 42);
  const auto dx = split.backward(dy, GradientMode::kStore, 0, Part::kInput);
  const auto other_dx = split.backward(other, GradientMode::kStore, 1, Part::kInput);
  split.backward(dy, GradientMode::kStore, 0, Part::kWeights);
  split.backward(other, GradientMode::kAdd, 1, Part::kWeights);
  EXPECT_TRUE(same_bits(dx, joined.backward(dy, GradientMode::kStore, 0)));
  EXPECT_TRUE(same_bits(other_dx, joined.backward(other, GradientMode::kAdd, 1)));
  for (std::size_t p = 0; p < split.parameters(); ++p) {
    EXPECT_TRUE(same_bits(split.gradients(p), joined.gradients(p))) << "parameter " << p;
  }
}

}  // namespace pipeoptim::test
