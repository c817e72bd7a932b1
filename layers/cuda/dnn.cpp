// Convolutions on CUDA: three execution plans of cuDNN's graph interface, for NHWC tensors and [out, kh, kw,
// in/groups] weights in fp32, or in bf16, to which factors that come in fp32 are rounded first. A plan is the
// first of cuDNN's heuristics, not timed, that computes in the precision asked for within kMaxWorkspace;
// deterministic ones first, so that two runs do the same. Plans are not shared between convolutions of one
// shape: cuDNN does not promise that every engine's plan may run in several threads at once, as two stages
// do.
#include <cudnn.h>

#include <algorithm>
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
#include "layers/cuda/handles.h"
#include "layers/cuda/planned_graph.h"
#include "layers/rounding.h"

namespace pipeoptim::cuda {
namespace {

constexpr std::size_t kMaxWorkspace = std::size_t{1} << 30;  // bytes that one plan may ask for

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

// What a plan leaves to kernels of ours.
struct Form {
  BiasAdd bias = BiasAdd::kNone;
  Result result = Result::kFp32;
};

// The type that a direction's result is stored in.
ElementType stored_type(const ConvolutionSpec& spec, Direction direction) {
  if (direction == Direction::kBackwardWeights) return ElementType::kFp32;
  return direction == Direction::kForward ? spec.types.output : spec.types.input;
}

// From the one that leaves nothing on. Of bf16 factors cuDNN may have a product only in bf16: of weight
// gradients its fast engines do no other.
std::vector<Form> forms(const ConvolutionSpec& spec, Direction direction) {
  const bool stores_bf16 = stored_type(spec, direction) == ElementType::kBf16;
  const Result result = stores_bf16 ? Result::kBf16 : Result::kFp32;
  std::vector<Form> forms;
  if (spec.bias && direction == Direction::kForward) {
    forms.push_back({.bias = BiasAdd::kFused, .result = result});
  }
  forms.push_back({.result = result});
  if (spec.precision == MatrixPrecision::kBf16 && !stores_bf16) forms.push_back({.result = Result::kBf16});
  return forms;
}

// What cuDNN is asked for, one after the other until it has a plan: fast ones of any form first, as a slow
// one may take fifteen times as long as one that leaves something to a kernel of ours.
std::vector<GraphRequest> requests(const ConvolutionSpec& spec, Direction direction) {
  std::vector<GraphRequest> requests;
  for (const Kernels kernels : {Kernels::kDeterministic, Kernels::kAny}) {
    for (const Engines engines : {Engines::kBest, Engines::kFallback}) {
      for (const Form& form : forms(spec, direction)) {
        requests.push_back({.direction = direction,
                            .bias = form.bias,
                            .result = form.result,
                            .kernels = kernels,
                            .engines = engines,
                            .max_workspace = kMaxWorkspace});
      }
    }
  }
  return requests;
}

// One direction, planned.
class PlannedDirection {
 public:
  PlannedDirection(cudnnHandle_t handle, const ConvolutionSpec& spec, Direction direction)
      : stored_(stored_type(spec, direction)) {
    const std::string called = std::string("cuDNN, ") + name(direction) + " of the " + describe(spec);
    std::string refusal;
    for (const GraphRequest& request : requests(spec, direction)) {
      GraphPlan plan = plan_graph(handle, spec, request);
      refusal = plan.refusal;
      if (!plan.descriptor) continue;
      form_ = {request.bias, request.result};
      std::vector<std::int64_t> ids{kInputId, kWeightsId, kOutputId};
      if (form_.bias == BiasAdd::kFused) ids.push_back(kBiasId);
      graph_ = PlannedGraph(called, std::move(plan), std::move(ids));
      return;
    }
    throw DeviceError(called, refusal);
  }

  std::size_t workspace_bytes() const { return graph_.workspace_bytes(); }
  const Form& form() const { return form_; }
  // Whether it makes in bf16 what is stored in fp32.
  bool narrows() const { return form_.result == Result::kBf16 && stored_ == ElementType::kFp32; }

  // Tensors in the order input, weights, output, bias.
  void run(Stream& stream, const PlanAddresses& addresses) { graph_.run(stream, addresses); }

 private:
  ElementType stored_;
  Form form_;
  PlannedGraph graph_;
};

class CudaConvolution final : public ConvolutionPlan {
 public:
  CudaConvolution(std::shared_ptr<cudnnContext> handle, const ConvolutionSpec& spec)
      : has_bias_(spec.bias),
        counts_{.input = spec.input.elements(),
                .weights = convolution_weights(spec),
                .output = convolution_output(spec).elements()},
        channels_(spec.out_channels),
        handle_(std::move(handle)),
        forward_(handle_.get(), spec, Direction::kForward),
        backward_data_(handle_.get(), spec, Direction::kBackwardData),
        backward_weights_(handle_.get(), spec, Direction::kBackwardWeights),
        factors_(spec.precision, counts_, spec.types, workspace_) {
    behind_ = workspace_.reserve(std::max(
        {forward_.workspace_bytes(), backward_data_.workspace_bytes(), backward_weights_.workspace_bytes()}));
    narrow_ = workspace_.reserve(
        std::max({narrow_bytes(forward_, counts_.output), narrow_bytes(backward_data_, counts_.input),
                  narrow_bytes(backward_weights_, counts_.weights)}));
    staged_gradient_ = workspace_.reserve(float_bytes(counts_.weights));
  }

  std::size_t workspace_bytes() const override { return workspace_.bytes(); }

  void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const override {
    if ((operands.bias != nullptr) != has_bias_) {
      throw std::invalid_argument("convolution: the plan and the call disagree about a bias");
    }
    const bool fused = forward_.form().bias == BiasAdd::kFused;
    void* const result = result_of(forward_, operands.output, workspace);
    forward_.run(stream, {{factors_.input(stream, operands.input, workspace),
                           factors_.weights(stream, operands.weights, workspace), result,
                           fused ? operands.bias : nullptr},
                          workspace + behind_});
    finish(stream, result, operands.output, counts_.output);
    if (has_bias_ && !fused) {
      add_bias(stream, {counts_.output / channels_, channels_}, operands.bias, operands.output);
    }
  }

  void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                     std::byte* workspace) const override {
    void* const result = result_of(backward_data_, operands.input_gradient, workspace);
    backward_data_.run(
        stream,
        {{result, factors_.weights(stream, operands.weights, workspace),
          factors_.output_gradient(stream, operands.output_gradient, Workspace::kUndefined, workspace)},
         workspace + behind_});
    finish(stream, result, operands.input_gradient, counts_.input);
  }

  // The frontend's graphs write results and add to none: what is to be added goes through the workspace.
  void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                        std::byte* workspace) const override {
    const bool adds = operands.mode == GradientMode::kAdd;
    float* const gradient = adds ? floats_at(workspace, staged_gradient_) : operands.weight_gradient;
    void* const result = result_of(backward_weights_, gradient, workspace);
    backward_weights_.run(
        stream, {{factors_.input(stream, operands.input, workspace), result,
                  factors_.output_gradient(stream, operands.output_gradient, operands.workspace, workspace)},
                 workspace + behind_});
    finish(stream, result, gradient, counts_.weights);
    if (adds) accumulate(stream, counts_.weights, gradient, operands.weight_gradient);
  }

 private:
  static std::size_t narrow_bytes(const PlannedDirection& direction, std::int64_t count) {
    return direction.narrows() ? static_cast<std::size_t>(count) * sizeof(Bf16) : 0;
  }

  // Where the plan writes what is to be stored, and the way from there.
  void* result_of(const PlannedDirection& direction, const Destination& to, std::byte* workspace) const {
    return direction.narrows() ? workspace + narrow_ : to.memory();
  }
  static void finish(Stream& stream, const void* result, const Destination& to, std::int64_t count) {
    if (result != to.memory()) widen_bf16(stream, count, static_cast<const Bf16*>(result), to.values);
  }

  bool has_bias_;
  FactorCounts counts_;
  std::int64_t channels_;                 // of the output
  std::shared_ptr<cudnnContext> handle_;  // the plans' own
  // Operands that were not met before are remembered, in the order of the one stream that uses the plan.
  mutable PlannedDirection forward_, backward_data_, backward_weights_;
  ArenaPlan workspace_;
  PlanFactors factors_;
  // Offsets: of the plans' workspace, of a result in bf16, of a gradient that is to be added.
  std::size_t behind_ = 0, narrow_ = 0, staged_gradient_ = 0;
};

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

std::unique_ptr<ConvolutionPlan> make_cuda_convolution(Device device, const ConvolutionSpec& spec) {
  const cuda::DeviceGuard current(device);
  return std::make_unique<cuda::CudaConvolution>(cuda::planning_handle(device), spec);
}

}  // namespace pipeoptim::detail
