// Pooling over {N, H, W, C}.
#pragma once

#include <cstdint>
#include <string>

#include "layers/layer.h"

namespace pipeoptim {

struct PoolOptions {
  std::int64_t kernel = 2;
  std::int64_t stride = 2;
  std::int64_t padding = 0;  // at most kernel / 2
};

// Largest value of each window; ties go to the first. The stash remembers which (one int32 an output).
class MaxPool2d final : public Layer {
 public:
  explicit MaxPool2d(PoolOptions options = {});
  std::string describe() const override;
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;

 private:
  PoolOptions options_;
};

// Mean of each window; padding counts as zeros (PyTorch's count_include_pad).
class AvgPool2d final : public Layer {
 public:
  explicit AvgPool2d(PoolOptions options = {});
  std::string describe() const override;
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;

 private:
  PoolOptions options_;
};

// {N, H, W, C} -> {N, C}: the mean over height and width.
class GlobalAvgPool final : public Layer {
 public:
  std::string describe() const override { return "global average pool"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

// {N, H, W, C} -> {N, C H W} in PyTorch's order (channel, row, column), so that a Linear behind it has
// PyTorch's weight.
class Flatten final : public Layer {
 public:
  std::string describe() const override { return "flatten"; }
  ElementTypes choose_types(ElementTypes offered) override { return same_types(offered); }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

}  // namespace pipeoptim
