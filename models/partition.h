// Which layers make which stage: contiguous pieces of the model's flat list.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "layers/layer.h"

namespace pipeoptim {

// Index of the first layer of every stage but the first: stages + 1 pieces are {0, cuts..., layers}.
using Cuts = std::vector<std::size_t>;

// Estimated seconds of one mini-batch's forward and both backwards, layer by layer. Plans every layer in
// order on the host, so a misfit of layers shows here, too (std::invalid_argument).
std::vector<double> layer_costs(std::span<const NamedLayer> layers, const Shape& input);

// Cuts whose most expensive stage is as cheap as possible; of several, those with the least sum of squared
// stage costs. Every stage gets at least one layer: throws std::invalid_argument, with both numbers, where
// there are more stages than layers.
Cuts balanced_cuts(std::span<const double> costs, int stages);

// Throws std::invalid_argument where cuts are out of order or past the layers.
Cuts checked_cuts(std::span<const int> given, std::size_t layers);

// Moves the layers into their stages.
std::vector<std::vector<NamedLayer>> split_layers(std::vector<NamedLayer> layers, const Cuts& cuts);

}  // namespace pipeoptim
