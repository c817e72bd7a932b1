// Batch norm and pooling by cuDNN (RowKernels::kCudnn).
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "layers/cuda/handles.h"
#include "layers/cuda/planned_graph.h"
#include "layers/cuda/row_graphs.h"
#include "layers/vendor_rows.h"

namespace pipeoptim::cuda {
namespace {

class CudnnNorm final : public VendorNorm {
 public:
  CudnnNorm(std::shared_ptr<cudnnContext> handle, const VendorNormSpec& spec, GraphPlan forward,
            GraphPlan backward)
      : eps_(spec.eps),
        momentum_(spec.momentum),
        handle_(std::move(handle)),
        forward_("forward of batch norm " + spec.input.to_string(), std::move(forward),
                 {kX, kScale, kBias, kEpsilon, kMomentum, kRunningMean, kRunningVariance, kY, kMean,
                  kReciprocal, kNextMean, kNextVariance}),
        backward_("backward of batch norm " + spec.input.to_string(), std::move(backward),
                  {kX, kYGradient, kScale, kMean, kReciprocal, kXGradient, kScaleGradient, kBiasGradient}) {}

  std::size_t workspace_bytes() const override {
    return std::max(forward_.workspace_bytes(), backward_.workspace_bytes());
  }

  void forward(Stream& stream, const VendorNormForward& of, std::byte* workspace) const override {
    forward_.run(stream,
                 {{of.x.memory(), of.weight, of.bias, &eps_, &momentum_, of.running_mean, of.running_variance,
                   of.y.memory(), of.mean, of.rstd, of.next_mean, of.next_variance},
                  workspace});
  }

  void backward(Stream& stream, const VendorNormBackward& of, std::byte* workspace) const override {
    backward_.run(stream, {{of.x.memory(), of.output_gradient.memory(), of.weight, of.mean, of.rstd,
                            of.input_gradient.memory(), of.weight_gradient, of.bias_gradient},
                           workspace});
  }

 private:
  float eps_, momentum_;                  // read when a plan runs
  std::shared_ptr<cudnnContext> handle_;  // the plans' own
  mutable PlannedGraph forward_, backward_;
};

std::vector<std::int64_t> with_choice(std::vector<std::int64_t> ids, PoolKind kind) {
  if (kind == PoolKind::kMaximum) ids.push_back(kChosen);
  return ids;
}

class CudnnPool final : public VendorPool {
 public:
  CudnnPool(std::shared_ptr<cudnnContext> handle, const VendorPoolSpec& spec, GraphPlan forward,
            GraphPlan backward)
      : chosen_bytes_(spec.kind == PoolKind::kMaximum ? static_cast<std::size_t>(spec.output.elements()) : 0),
        handle_(std::move(handle)),
        forward_("forward of pooling " + spec.input.to_string(), std::move(forward),
                 with_choice({kX, kY}, spec.kind)),
        backward_("backward of pooling " + spec.input.to_string(), std::move(backward),
                  with_choice({kYGradient, kXGradient}, spec.kind)) {}

  std::size_t stash_bytes() const override { return chosen_bytes_; }
  std::size_t workspace_bytes() const override {
    return std::max(forward_.workspace_bytes(), backward_.workspace_bytes());
  }

  void forward(Stream& stream, const void* x, void* y, std::byte* stash,
               std::byte* workspace) const override {
    forward_.run(stream, {{x, y, chosen(stash)}, workspace});
  }
  void backward(Stream& stream, const void* output_gradient, void* input_gradient, std::byte* stash,
                std::byte* workspace) const override {
    backward_.run(stream, {{output_gradient, input_gradient, chosen(stash)}, workspace});
  }

 private:
  const void* chosen(const std::byte* stash) const { return chosen_bytes_ > 0 ? stash : nullptr; }

  std::size_t chosen_bytes_;
  std::shared_ptr<cudnnContext> handle_;  // the plans' own
  mutable PlannedGraph forward_, backward_;
};

// A Plan of both directions, or null where cuDNN has not both. A Make takes a handle and the spec.
template <typename Plan, typename Spec, typename Make>
std::unique_ptr<Plan> make_plan(Device device, const Spec& spec, Make make_forward, Make make_backward) {
  const DeviceGuard current(device);
  auto handle = planning_handle(device);
  GraphPlan forward = make_forward(handle.get(), spec);
  if (forward.descriptor == nullptr) return nullptr;
  GraphPlan backward = make_backward(handle.get(), spec);
  if (backward.descriptor == nullptr) return nullptr;
  return std::make_unique<Plan>(std::move(handle), spec, std::move(forward), std::move(backward));
}

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

std::unique_ptr<VendorNorm> make_cuda_norm(Device device, const VendorNormSpec& spec) {
  // Arrays of channels lie one behind the other, and cuDNN wants each at a multiple of 16 bytes.
  if (spec.input.last() % 4 != 0) return nullptr;
  return cuda::make_plan<cuda::CudnnNorm>(device, spec, cuda::plan_norm_forward, cuda::plan_norm_backward);
}

std::unique_ptr<VendorPool> make_cuda_pool(Device device, const VendorPoolSpec& spec) {
  return cuda::make_plan<cuda::CudnnPool>(device, spec, cuda::plan_pool_forward, cuda::plan_pool_backward);
}

}  // namespace pipeoptim::detail
