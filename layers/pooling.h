// Pooling over {N, H, W, C}.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layers/layer.h"

namespace pipeoptim {

class VendorPool;
struct VendorPoolSpec;

struct PoolOptions {
  std::int64_t kernel = 2;
  std::int64_t stride = 2;
  std::int64_t padding = 0;  // at most kernel / 2
};

// What all pooling has alike: the type of its tensors, and cuDNN's plan where that is asked for.
class Pooling : public Layer {
 public:
  ~Pooling() override;
  ElementTypes choose_types(ElementTypes offered) override;
  void set_row_kernels(RowKernels kernels) override { kernels_ = kernels; }

 protected:
  Pooling();
  // For plan(): tries cuDNN, and says so in the plan. The spec's type is filled in.
  void try_vendor(Device device, VendorPoolSpec spec, LayerPlan& plan);
  // Whether cuDNN has it in hand.
  bool vendor_forward(const ForwardContext& context) const;
  bool vendor_backward(const BackwardContext& context) const;

 private:
  RowKernels kernels_ = RowKernels::kOwn;
  ElementType type_ = ElementType::kFp32;
  std::unique_ptr<VendorPool> vendor_;  // null: our own kernels
};

// Largest value of each window; ties go to the first. The stash remembers which (one int32 an output).
class MaxPool2d final : public Pooling {
 public:
  explicit MaxPool2d(PoolOptions options = {});
  std::string describe() const override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;

 private:
  PoolOptions options_;
};

// Mean of each window; padding counts as zeros (PyTorch's count_include_pad).
class AvgPool2d final : public Pooling {
 public:
  explicit AvgPool2d(PoolOptions options = {});
  std::string describe() const override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;

 private:
  PoolOptions options_;
};

// {N, H, W, C} -> {N, C}: the mean over height and width.
class GlobalAvgPool final : public Pooling {
 public:
  std::string describe() const override { return "global average pool"; }
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
};

}  // namespace pipeoptim
