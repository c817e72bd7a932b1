#include "layers/cuda/convolution_graph.h"

#include <limits>

#include "layers/cuda/frontend.h"

namespace pipeoptim::cuda {
namespace {

template <typename Attributes>
Attributes geometry(const ConvolutionSpec& spec) {
  return Attributes()
      .set_padding(Extents(2, spec.padding))
      .set_stride(Extents(2, spec.stride))
      .set_dilation(Extents(2, spec.dilation));
}

// The graph of one direction.
class ConvolutionGraph final : public PlannableGraph {
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
             spec.input, kInputId, result_);
        break;
      case Direction::kBackwardWeights:
        // cuDNN takes the weights for a tensor of out_channels images.
        give(conv_wgrad(take(output_, kOutputId), take(spec.input, kInputId),
                        geometry<fe::graph::Conv_wgrad_attributes>(spec)),
             weights_, kWeightsId, result_);
        break;
    }
  }

 private:
  static constexpr auto kFloat = fe::DataType_t::FLOAT;

  void make_forward(const ConvolutionSpec& spec, BiasAdd bias) {
    const GraphTensor products = conv_fprop(take(spec.input, kInputId), take(weights_, kWeightsId),
                                            geometry<fe::graph::Conv_fprop_attributes>(spec));
    if (bias == BiasAdd::kNone) return give(products, output_, kOutputId, result_);
    lay_out(*products, output_);
    const auto add = fe::graph::Pointwise_attributes().set_mode(fe::PointwiseMode_t::ADD);
    const GraphTensor addends = take({1, 1, 1, spec.out_channels}, kBiasId);
    addends->set_data_type(kFloat);
    give(pointwise(products, addends, add), output_, kOutputId, result_);
  }

  Shape output_;
  Shape weights_;  // as they are stored
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

}  // namespace

GraphPlan plan_graph(cudnnHandle_t handle, const ConvolutionSpec& spec, const GraphRequest& request) {
  // Not every version of the frontend refuses what its kernels cannot index.
  if (convolution_weights(spec) > std::numeric_limits<std::int32_t>::max())
    return {.refusal =
                std::to_string(convolution_weights(spec)) + " weights are more than 32-bit indices reach"};
  return attempt([&] {
    ConvolutionGraph graph(spec, request);
    return graph.plan(handle, request.engines, unwanted(spec.precision, request.kernels),
                      request.max_workspace);
  });
}

}  // namespace pipeoptim::cuda
