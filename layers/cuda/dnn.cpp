// Convolutions on CUDA: three execution plans of cuDNN's graph interface, for NHWC tensors and [out, kh, kw,
// in/groups] weights in fp32. A plan is the first of cuDNN's heuristics (mode A, then its fallbacks), not
// timed, that computes in the precision asked for within kMaxWorkspace; deterministic ones first, so that two
// runs do the same. Plans are not shared between convolutions of one shape: cuDNN does not promise that every
// engine's plan may run in several threads at once, as two stages do.
#include <cudnn.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "layers/accumulate.h"
#include "layers/backend.h"
#include "layers/bias.h"
#include "layers/cuda/convolution_graph.h"
#include "layers/cuda/cudnn_check.h"
#include "layers/cuda/handles.h"
#include "layers/cuda/variant_packs.h"

namespace pipeoptim::cuda {
namespace {

constexpr std::size_t kMaxWorkspace = std::size_t{1} << 30;  // bytes that one plan may ask for

cudnnHandle_t create_handle() {
  cudnnHandle_t handle = nullptr;
  check(cudnnCreate(&handle), "cudnnCreate");
  return handle;
}

// A handle that enqueues on the stream. The device must be the current one.
cudnnHandle_t handle_of(Device device, void* stream) {
  thread_local HandleCache<cudnnHandle_t, cudnnDestroy> cache;
  const cudnnHandle_t handle = cache.get(device, stream, create_handle);
  check(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
  return handle;
}

// The calling thread's handle for planning. Plans keep it, as they may outlive the thread.
std::shared_ptr<cudnnContext> planning_handle(Device device) {
  thread_local std::map<int, std::weak_ptr<cudnnContext>> handles;
  std::shared_ptr<cudnnContext> handle = handles[device.ordinal].lock();
  if (!handle) {
    handle = std::shared_ptr<cudnnContext>(create_handle(), Destroyer<cudnnDestroy>());
    handles[device.ordinal] = handle;
  }
  return handle;
}

const char* name(Direction direction) {
  switch (direction) {
    case Direction::kForward:
      return "forward";
    case Direction::kBackwardData:
      return "backward data";
    case Direction::kBackwardWeights:
      return "backward weights";
  }
  return "";
}

// One direction: its plan and the operands that it has met.
class PlannedDirection {
 public:
  // Takes the first kind of bias that cuDNN has a plan for.
  PlannedDirection(cudnnHandle_t handle, const ConvolutionSpec& spec, Direction direction,
                   std::initializer_list<BiasAdd> biases)
      : name_(std::string("cuDNN, ") + name(direction) + " of the " + describe(spec)) {
    for (const Kernels kernels : {Kernels::kDeterministic, Kernels::kAny}) {
      for (const BiasAdd bias : biases) {
        plan_ = plan_graph(
            handle, spec,
            {.direction = direction, .bias = bias, .kernels = kernels, .max_workspace = kMaxWorkspace});
        bias_ = bias;
        if (!plan_.descriptor) continue;
        std::vector<std::int64_t> ids{kInputId, kWeightsId, kOutputId};
        if (bias == BiasAdd::kFused) ids.push_back(kBiasId);
        packs_ = VariantPacks(std::move(ids));
        return;
      }
    }
    throw DeviceError(name_, plan_.refusal);
  }

  std::size_t workspace_bytes() const { return plan_.workspace_bytes; }
  BiasAdd bias() const { return bias_; }

  // Tensors in the order input, weights, output, bias.
  void run(Stream& stream, const PlanAddresses& addresses) {
    const DeviceGuard current(stream.device());
    const cudnnHandle_t handle = handle_of(stream.device(), stream.native());
    const cudnnStatus_t status = cudnnBackendExecute(handle, plan_.descriptor, packs_.of(addresses));
    if (status != CUDNN_STATUS_SUCCESS) check(status, "cudnnBackendExecute: " + name_);
  }

 private:
  std::string name_;  // for messages
  GraphPlan plan_;
  BiasAdd bias_ = BiasAdd::kNone;
  VariantPacks packs_{{}};
};

class CudaConvolution final : public ConvolutionPlan {
 public:
  CudaConvolution(std::shared_ptr<cudnnContext> handle, const ConvolutionSpec& spec)
      : has_bias_(spec.bias),
        output_(convolution_output(spec)),
        weights_(convolution_weights(spec)),
        handle_(std::move(handle)),
        forward_(handle_.get(), spec, Direction::kForward,
                 spec.bias ? std::initializer_list<BiasAdd>{BiasAdd::kFused, BiasAdd::kNone}
                           : std::initializer_list<BiasAdd>{BiasAdd::kNone}),
        backward_data_(handle_.get(), spec, Direction::kBackwardData, {BiasAdd::kNone}),
        backward_weights_(handle_.get(), spec, Direction::kBackwardWeights, {BiasAdd::kNone}),
        staged_gradient_(align_up(backward_weights_.workspace_bytes())) {}

  std::size_t workspace_bytes() const override {
    const std::size_t staged = static_cast<std::size_t>(weights_) * sizeof(float);
    return std::max(
        {forward_.workspace_bytes(), backward_data_.workspace_bytes(), staged_gradient_ + staged});
  }

  void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const override {
    if ((operands.bias != nullptr) != has_bias_) {
      throw std::invalid_argument("convolution: the plan and the call disagree about a bias");
    }
    const bool fused = forward_.bias() == BiasAdd::kFused;
    forward_.run(
        stream,
        {{operands.input, operands.weights, operands.output, fused ? operands.bias : nullptr}, workspace});
    if (has_bias_ && !fused) {
      add_bias(stream, {output_.elements() / output_[3], output_[3]}, operands.bias, operands.output);
    }
  }

  void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                     std::byte* workspace) const override {
    backward_data_.run(stream,
                       {{operands.input_gradient, operands.weights, operands.output_gradient}, workspace});
  }

  // The frontend's graphs write results and add to none: what is to be added goes through the workspace.
  void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                        std::byte* workspace) const override {
    float* result = operands.weight_gradient;
    if (operands.mode == GradientMode::kAdd) result = reinterpret_cast<float*>(workspace + staged_gradient_);
    backward_weights_.run(stream, {{operands.input, result, operands.output_gradient}, workspace});
    if (operands.mode == GradientMode::kAdd) accumulate(stream, weights_, result, operands.weight_gradient);
  }

 private:
  bool has_bias_;
  Shape output_;
  std::int64_t weights_;
  std::shared_ptr<cudnnContext> handle_;  // the plans' own
  // Operands that were not met before are remembered, in the order of the one stream that uses the plan.
  mutable PlannedDirection forward_, backward_data_, backward_weights_;
  std::size_t staged_gradient_;  // its place in the workspace
};

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

std::unique_ptr<ConvolutionPlan> make_cuda_convolution(Device device, const ConvolutionSpec& spec) {
  const cuda::DeviceGuard current(device);
  return std::make_unique<cuda::CudaConvolution>(cuda::planning_handle(device), spec);
}

}  // namespace pipeoptim::detail
