// Convolutions on the host. Activations stay NHWC, for which oneDNN has vectorized kernels in all three
// directions (on AVX2 within 5 to 20 % of its own blocked formats, which would cost a reorder of every
// activation). Weights are reordered from the arena's [out, kh, kw, in/groups] in every call: they change
// with every update, and are small beside the activations.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/runtime/error.h"
#include "layers/backend.h"
#include "layers/host/dnnl_versions.h"
#include "layers/host/planning.h"
#include "layers/host/staged_primitive.h"

namespace pipeoptim::host {
namespace {

using dnnl::memory;
using Role = StagedPrimitive::Role;

memory::desc layout(const memory::dims& extents, memory::format_tag tag) {
  return {extents, memory::data_type::f32, tag};
}

memory::dims weight_extents(const ConvolutionSpec& spec) {
  const std::int64_t in = spec.input[3] / spec.groups;
  if (spec.groups == 1) return {spec.out_channels, in, spec.kernel, spec.kernel};
  return {spec.groups, spec.out_channels / spec.groups, in, spec.kernel, spec.kernel};
}

// oneDNN's vectorized 1x1 convolutions gather the pixels of a stride in groups of eight channels: with other
// channel counts 2.6 writes past its scratchpad. With weights in our layout it takes another implementation.
bool strides_narrow_pixels(const ConvolutionSpec& spec) {
  constexpr std::int64_t kGroup = 8;
  return spec.kernel == 1 && spec.stride > 1 &&
         (spec.input[3] % kGroup != 0 || spec.out_channels % kGroup != 0);
}

// Our layouts of one convolution, and what oneDNN is asked for.
struct Layouts {
  explicit Layouts(const ConvolutionSpec& spec) {
    const Shape out = convolution_output(spec);
    const memory::dims x{spec.input[0], spec.input[3], spec.input[1], spec.input[2]};
    const memory::dims y{out[0], out[3], out[1], out[2]};
    const memory::dims w = weight_extents(spec);
    const auto arena = spec.groups == 1 ? memory::format_tag::ohwi : memory::format_tag::gohwi;
    ours = {layout(x, memory::format_tag::nhwc), layout(w, arena), memory::desc(),
            layout(y, memory::format_tag::nhwc)};
    if (spec.bias) ours.bias = layout({spec.out_channels}, memory::format_tag::x);
    asked = ours;
    if (!strides_narrow_pixels(spec)) asked.weights = layout(w, memory::format_tag::any);
    geometry = {
        {spec.stride, spec.stride}, {spec.dilation - 1, spec.dilation - 1}, {spec.padding, spec.padding}};
  }
  ConvolutionMemory ours, asked;
  ConvolutionGeometry geometry;
};

class HostConvolution final : public ConvolutionPlan {
 public:
  HostConvolution(int threads, const ConvolutionSpec& spec) : threads_(threads), has_bias_(spec.bias) {
    const PlanningThreads guard(threads);
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const Layouts layouts(spec);
    const auto forward = describe_forward(engine, layouts.asked, layouts.geometry);
    make_forward(engine, layouts, forward);
    make_backward_data(engine, layouts,
                       describe_backward_data(engine, layouts.asked, layouts.geometry, forward));
    make_backward_weights(engine, layouts,
                          describe_backward_weights(engine, layouts.asked, layouts.geometry, forward));
  }

  std::size_t workspace_bytes() const override {
    return std::max({forward_->workspace_bytes(), data_->workspace_bytes(), weights_->workspace_bytes()});
  }

  void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const override {
    require_threads("convolution", threads_, stream);
    if ((operands.bias != nullptr) != has_bias_) {
      throw std::invalid_argument("convolution: the plan and the call disagree about a bias");
    }
    stream.submit([primitive = &*forward_, operands, workspace] {
      // oneDNN's interface is not const-correct: inputs are only read.
      float* const pointers[] = {const_cast<float*>(operands.input), const_cast<float*>(operands.weights),
                                 operands.output, const_cast<float*>(operands.bias)};
      primitive->execute(pointers, workspace);
    });
  }

  void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                     std::byte* workspace) const override {
    require_threads("convolution", threads_, stream);
    stream.submit([primitive = &*data_, operands, workspace] {
      float* const pointers[] = {const_cast<float*>(operands.weights),
                                 const_cast<float*>(operands.output_gradient), operands.input_gradient};
      primitive->execute(pointers, workspace);
    });
  }

  void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                        std::byte* workspace) const override {
    require_threads("convolution", threads_, stream);
    stream.submit([primitive = &*weights_, operands, workspace] {
      float* const pointers[] = {const_cast<float*>(operands.input),
                                 const_cast<float*>(operands.output_gradient), operands.weight_gradient};
      primitive->execute(pointers, workspace, operands.mode);
    });
  }

 private:
  void make_forward(const dnnl::engine& engine, const Layouts& layouts, const ForwardDescriptor& chosen) {
    std::vector<StagedPrimitive::Operand> operands{
        {DNNL_ARG_SRC, layouts.ours.input, chosen.src_desc(), Role::kInput},
        {DNNL_ARG_WEIGHTS, layouts.ours.weights, chosen.weights_desc(), Role::kInput},
        {DNNL_ARG_DST, layouts.ours.output, chosen.dst_desc(), Role::kOutput}};
    if (has_bias_) operands.push_back({DNNL_ARG_BIAS, layouts.ours.bias, layouts.ours.bias, Role::kInput});
    forward_.emplace(engine, dnnl::convolution_forward(chosen), chosen.scratchpad_desc(), operands);
  }

  void make_backward_data(const dnnl::engine& engine, const Layouts& layouts,
                          const BackwardDataDescriptor& chosen) {
    data_.emplace(engine, dnnl::convolution_backward_data(chosen), chosen.scratchpad_desc(),
                  std::vector<StagedPrimitive::Operand>{
                      {DNNL_ARG_WEIGHTS, layouts.ours.weights, chosen.weights_desc(), Role::kInput},
                      {DNNL_ARG_DIFF_DST, layouts.ours.output, chosen.diff_dst_desc(), Role::kInput},
                      {DNNL_ARG_DIFF_SRC, layouts.ours.input, chosen.diff_src_desc(), Role::kOutput}});
  }
  void make_backward_weights(const dnnl::engine& engine, const Layouts& layouts,
                             const BackwardWeightsDescriptor& chosen) {
    weights_.emplace(
        engine, dnnl::convolution_backward_weights(chosen), chosen.scratchpad_desc(),
        std::vector<StagedPrimitive::Operand>{
            {DNNL_ARG_SRC, layouts.ours.input, chosen.src_desc(), Role::kInput},
            {DNNL_ARG_DIFF_DST, layouts.ours.output, chosen.diff_dst_desc(), Role::kInput},
            {DNNL_ARG_DIFF_WEIGHTS, layouts.ours.weights, chosen.diff_weights_desc(), Role::kAccumulated}});
  }

  int threads_;
  bool has_bias_;
  // Addresses of operands change from call to call, in the order of the one stream that uses the plan.
  mutable std::optional<StagedPrimitive> forward_, data_, weights_;
};

}  // namespace
}  // namespace pipeoptim::host

namespace pipeoptim::detail {

std::unique_ptr<ConvolutionPlan> make_host_convolution(int threads, const ConvolutionSpec& spec) {
  try {
    return std::make_unique<host::HostConvolution>(threads, spec);
  } catch (const dnnl::error& error) {
    throw DeviceError("oneDNN, " + describe(spec), std::string(error.what()) + ", status " +
                                                       std::to_string(static_cast<int>(error.status)));
  }
}

}  // namespace pipeoptim::detail
