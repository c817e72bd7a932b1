#include "layers/cuda/convolution_graph.h"

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <limits>

// The frontend has an engine of its own that compiles kernels at run time; we never ask for it. Its calls
// stay unresolved unless something else brings libnvrtc, so that the program starts where that library is
// missing.
#pragma weak nvrtcCreateProgram
#pragma weak nvrtcCompileProgram
#pragma weak nvrtcDestroyProgram
#pragma weak nvrtcGetCUBIN
#pragma weak nvrtcGetCUBINSize
#pragma weak nvrtcGetProgramLog
#pragma weak nvrtcGetProgramLogSize

namespace pipeoptim::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using Tensor = std::shared_ptr<Tensor_attributes>;
using Extents = std::vector<std::int64_t>;

// cuDNN names axes in the order N, C, H, W, whatever their order in memory.
void lay_out(Tensor_attributes& tensor, const Shape& nhwc) {
  const std::int64_t n = nhwc[0], h = nhwc[1], w = nhwc[2], c = nhwc[3];
  tensor.set_dim({n, c, h, w}).set_stride({h * w * c, 1, w * c, c});
}

template <typename Attributes>
Attributes geometry(const ConvolutionSpec& spec) {
  return Attributes()
      .set_padding(Extents(2, spec.padding))
      .set_stride(Extents(2, spec.stride))
      .set_dilation(Extents(2, spec.dilation));
}

// The graph of one direction, from tensors as they lie in our memory.
class ConvolutionGraph : public fe::graph::Graph {
 public:
  ConvolutionGraph(const ConvolutionSpec& spec, const GraphRequest& request)
      : output_(convolution_output(spec)),
        weights_{spec.out_channels, spec.kernel, spec.kernel, spec.input[3] / spec.groups},
        result_(request.result == Result::kBf16 ? fe::DataType_t::BFLOAT16 : kFloat) {
    const auto factors = spec.precision == MatrixPrecision::kBf16 ? fe::DataType_t::BFLOAT16 : kFloat;
    set_io_data_type(factors).set_intermediate_data_type(kFloat).set_compute_data_type(kFloat);
    switch (request.direction) {
      case Direction::kForward:
        make_forward(spec, request.bias);
        break;
      case Direction::kBackwardData:
        give(conv_dgrad(take(output_, kOutputId), take(weights_, kWeightsId),
                        geometry<fe::graph::Conv_dgrad_attributes>(spec)),
             spec.input, kInputId);
        break;
      case Direction::kBackwardWeights:
        give(conv_wgrad(take(output_, kOutputId), take(spec.input, kInputId),
                        geometry<fe::graph::Conv_wgrad_attributes>(spec)),
             weights_, kWeightsId);
        break;
    }
  }

  // After build_plans(). A plan needs its graph no longer.
  std::shared_ptr<fe::ExecutionPlan> chosen() const {
    return plans.execution_plans.at(static_cast<std::size_t>(plans.candidate));
  }

 private:
  static constexpr auto kFloat = fe::DataType_t::FLOAT;

  Tensor take(const Shape& nhwc, std::int64_t id) {
    Tensor_attributes attributes;
    lay_out(attributes, nhwc);
    return tensor(attributes.set_uid(id));
  }
  void give(const Tensor& result, const Shape& nhwc, std::int64_t id) const {
    lay_out(*result, nhwc);
    result->set_output(true).set_uid(id).set_data_type(result_);
  }

  void make_forward(const ConvolutionSpec& spec, BiasAdd bias) {
    const Tensor products = conv_fprop(take(spec.input, kInputId), take(weights_, kWeightsId),
                                       geometry<fe::graph::Conv_fprop_attributes>(spec));
    if (bias == BiasAdd::kNone) return give(products, output_, kOutputId);
    lay_out(*products, output_);
    const auto add = fe::graph::Pointwise_attributes().set_mode(fe::PointwiseMode_t::ADD);
    const Tensor addends = take({1, 1, 1, spec.out_channels}, kBiasId);
    addends->set_data_type(kFloat);
    give(pointwise(products, addends, add), output_, kOutputId);
  }

  Shape output_;
  Shape weights_;  // as they are stored; cuDNN takes them for a tensor of out_channels images
  fe::DataType_t result_;
};

// What a plan must not do. cuDNN notes at an engine when it computes on tensor cores, which for fp32 operands
// means TF32 (for bf16 operands it is what is wanted), and when it rounds its operands to a shorter type than
// that.
std::vector<fe::NumericalNote_t> unwanted(MatrixPrecision precision, Kernels kernels) {
  std::vector<fe::NumericalNote_t> notes{fe::NumericalNote_t::DOWN_CONVERT_INPUTS,
                                         fe::NumericalNote_t::REDUCED_PRECISION_REDUCTION};
  if (precision == MatrixPrecision::kFp32) notes.push_back(fe::NumericalNote_t::TENSOR_CORE);
  if (kernels == Kernels::kDeterministic) notes.push_back(fe::NumericalNote_t::NONDETERMINISTIC);
  return notes;
}

fe::error_t build(ConvolutionGraph& graph, cudnnHandle_t handle, MatrixPrecision precision,
                  const GraphRequest& request) {
  if (auto error = graph.validate(); error.is_bad()) return error;
  if (auto error = graph.build_operation_graph(handle); error.is_bad()) return error;
  const auto ranking = {fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK};
  if (auto error = graph.create_execution_plans(ranking); error.is_bad()) return error;
  graph.deselect_numeric_notes(unwanted(precision, request.kernels));
  graph.deselect_workspace_greater_than(static_cast<std::int64_t>(request.max_workspace));
  if (auto error = graph.check_support(handle); error.is_bad()) return error;
  return graph.build_plans(handle, fe::BuildPlanPolicy_t::HEURISTICS_CHOICE);
}

}  // namespace

GraphPlan plan_graph(cudnnHandle_t handle, const ConvolutionSpec& spec, const GraphRequest& request) {
  GraphPlan plan;
  // Not every version of the frontend refuses what its kernels cannot index.
  if (convolution_weights(spec) > std::numeric_limits<std::int32_t>::max()) {
    plan.refusal = std::to_string(convolution_weights(spec)) + " weights are more than 32-bit indices reach";
    return plan;
  }
  try {
    ConvolutionGraph graph(spec, request);
    if (auto error = build(graph, handle, spec.precision, request); error.is_bad()) {
      plan.refusal = error.get_message();
      return plan;
    }
    const std::shared_ptr<fe::ExecutionPlan> chosen = graph.chosen();
    plan.descriptor = chosen->get_raw_desc();
    plan.workspace_bytes = static_cast<std::size_t>(chosen->getWorkspaceSize());
    plan.owner = chosen;
  } catch (const fe::cudnnException& error) {
    plan.refusal = error.what();
  }
  return plan;
}

}  // namespace pipeoptim::cuda
