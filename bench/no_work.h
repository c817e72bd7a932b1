// Layers and a loss that do nothing: what is left is the work of what holds them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "layers/layer.h"

namespace pipeoptim::bench {

class NoLayer final : public Layer {
 public:
  std::string describe() const override { return "nothing"; }
  LayerPlan plan(Device, int, const Shape& input) override {
    return {.output = input, .needs = Needs::kNothing, .in_place = true};
  }
  void forward(const ForwardContext&) const override {}
  void backward_input(const BackwardContext&) const override {}
};

class NoLoss final : public Loss {
 public:
  std::size_t workspace_bytes(const Shape&) const override { return 0; }
  void run(const LossContext&) const override {}
};

inline std::vector<std::vector<NamedLayer>> empty_stages(int count) {
  std::vector<std::vector<NamedLayer>> stages(static_cast<std::size_t>(count));
  for (auto& stage : stages) stage.push_back({"nothing", std::make_unique<NoLayer>()});
  return stages;
}

}  // namespace pipeoptim::bench
