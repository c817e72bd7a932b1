#include "models/partition.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace pipeoptim {

namespace {

// What one core of a present machine reaches on these layers. Only the ratio matters: it says at how many
// operations a byte a layer stops being bound by memory (5 here).
constexpr double kFlopsPerSecond = 80e9;
constexpr double kBytesPerSecond = 16e9;

}  // namespace

std::vector<double> layer_costs(std::span<const NamedLayer> layers, const Shape& input) {
  std::vector<double> costs;
  Shape shape = input;
  for (const NamedLayer& named : layers) {
    const LayerPlan plan = named.layer->plan(Device::host(), 1, shape);
    costs.push_back((plan.forward_flops + plan.backward_flops) / kFlopsPerSecond +
                    plan.bytes / kBytesPerSecond);
    shape = plan.output;
  }
  return costs;
}

// best[s][n] is the best split of the first n layers into s stages; its last stage begins at from[s][n].
Cuts balanced_cuts(std::span<const double> costs, int stages) {
  const std::size_t layers = costs.size();
  if (stages < 1) throw std::invalid_argument("a pipeline has at least one stage");
  const auto depth = static_cast<std::size_t>(stages);
  if (depth > layers) {
    throw std::invalid_argument(std::to_string(stages) + " stages are more than the model's " +
                                std::to_string(layers) + " layers");
  }
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> sum(layers + 1, 0.0);
  for (std::size_t i = 0; i < layers; ++i) sum[i + 1] = sum[i] + costs[i];

  // First the smallest possible maximum, ...
  std::vector<double> largest(layers + 1, kNever);
  largest[0] = 0;
  for (std::size_t s = 1; s <= depth; ++s) {
    std::vector<double> next(layers + 1, kNever);
    for (std::size_t n = s; n <= layers; ++n) {
      for (std::size_t begin = s - 1; begin < n; ++begin) {
        next[n] = std::min(next[n], std::max(largest[begin], sum[n] - sum[begin]));
      }
    }
    largest = std::move(next);
  }
  const double limit = largest[layers];

  // ... then the most even split within it.
  std::vector<std::vector<std::size_t>> from(depth + 1, std::vector<std::size_t>(layers + 1, 0));
  std::vector<double> squares(layers + 1, kNever);
  squares[0] = 0;
  for (std::size_t s = 1; s <= depth; ++s) {
    std::vector<double> next(layers + 1, kNever);
    for (std::size_t n = s; n <= layers; ++n) {
      for (std::size_t begin = s - 1; begin < n; ++begin) {
        const double cost = sum[n] - sum[begin];
        if (cost > limit || squares[begin] + cost * cost >= next[n]) continue;
        next[n] = squares[begin] + cost * cost;
        from[s][n] = begin;
      }
    }
    squares = std::move(next);
  }
  Cuts cuts(depth - 1);
  for (std::size_t s = depth, n = layers; s > 1; --s) {
    n = from[s][n];
    cuts[s - 2] = n;
  }
  return cuts;
}

Cuts checked_cuts(std::span<const int> given, std::size_t layers) {
  Cuts cuts;
  for (const int cut : given) {
    const std::string what = "cut " + std::to_string(cut);
    if (cut < 1 || static_cast<std::size_t>(cut) >= layers) {
      throw std::invalid_argument(what + " is not between 1 and " + std::to_string(layers - 1) +
                                  ", the numbers of the layers after the first");
    }
    if (!cuts.empty() && static_cast<std::size_t>(cut) <= cuts.back()) {
      throw std::invalid_argument(what + " does not come after " + std::to_string(cuts.back()) +
                                  "; cuts must grow");
    }
    cuts.push_back(static_cast<std::size_t>(cut));
  }
  return cuts;
}

std::vector<std::vector<NamedLayer>> split_layers(std::vector<NamedLayer> layers, const Cuts& cuts) {
  std::vector<std::vector<NamedLayer>> stages(cuts.size() + 1);
  std::size_t stage = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    while (stage < cuts.size() && i >= cuts[stage]) ++stage;
    stages[stage].push_back(std::move(layers[i]));
  }
  for (const auto& part : stages) {
    if (part.empty()) throw std::logic_error("cuts leave a stage without layers");
  }
  return stages;
}

}  // namespace pipeoptim
