// Convolutions on the host. Activations stay NHWC, for which oneDNN has vectorized kernels in all three
// directions (on AVX2 within 5 to 20 % of its own blocked formats, which would cost a reorder of every
// activation). Weights are reordered from the arena's [out, kh, kw, in/groups] in every call: they change
// with every update, and are small beside the activations. Factors of bf16 that are given in fp32 are rounded
// into the workspace first. Ours are, where they can be, weight gradients in bf16 (weight_gradient.h), 3x3
// convolutions in fp32 (winograd.h), and images that are smaller than the kernel, multiplied by a dense
// matrix.
#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>

#include "kernels/runtime/error.h"
#include "layers/backend.h"
#include "layers/host/dense_convolution.h"
#include "layers/host/dnnl_versions.h"
#include "layers/host/planning.h"
#include "layers/host/staged_primitive.h"
#include "layers/host/weight_gradient.h"
#include "layers/host/winograd.h"
#include "layers/rounding.h"

namespace pipeoptim::host {
namespace {

using dnnl::memory;
using Role = StagedPrimitive::Role;

using Type = memory::data_type;

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

// Types of one direction's tensors: of two factors and a result.
struct Types {
  Type input, weights, output;
};

// Our layouts of one direction, and what oneDNN is asked for.
struct Layouts {
  Layouts(const ConvolutionSpec& spec, const Types& types) {
    const Shape out = convolution_output(spec);
    const memory::dims x{spec.input[0], spec.input[3], spec.input[1], spec.input[2]};
    const memory::dims y{out[0], out[3], out[1], out[2]};
    const memory::dims w = weight_extents(spec);
    const auto arena = spec.groups == 1 ? memory::format_tag::ohwi : memory::format_tag::gohwi;
    ours = {memory::desc(x, types.input, memory::format_tag::nhwc), memory::desc(w, types.weights, arena),
            memory::desc(), memory::desc(y, types.output, memory::format_tag::nhwc)};
    if (spec.bias) ours.bias = memory::desc({spec.out_channels}, Type::f32, memory::format_tag::x);
    asked = ours;
    if (!strides_narrow_pixels(spec)) asked.weights = memory::desc(w, types.weights, memory::format_tag::any);
    geometry = {
        {spec.stride, spec.stride}, {spec.dilation - 1, spec.dilation - 1}, {spec.padding, spec.padding}};
  }
  ConvolutionMemory ours, asked;
  ConvolutionGeometry geometry;
};

class HostConvolution final : public ConvolutionPlan {
 public:
  HostConvolution(int threads, const ConvolutionSpec& spec)
      : threads_(threads),
        has_bias_(spec.bias),
        factors_(spec.precision,
                 {.input = spec.input.elements(),
                  .weights = convolution_weights(spec),
                  .output = convolution_output(spec).elements()},
                 spec.types, workspace_) {
    if (spec.precision == MatrixPrecision::kBf16) require_bf16();
    if (WinogradConvolution::handles(threads, spec)) winograd_.emplace(threads, spec);
    if (PairedWeightGradient::handles(threads, spec)) paired_.emplace(threads, spec);
    const bool sums = !paired_ && !WinogradConvolution::handles_weights(threads, spec);
    if (!winograd_ || sums) make_primitives(spec, sums);
    behind_ = workspace_.reserve(std::max(
        {bytes_of(forward_), bytes_of(data_), bytes_of(weights_), bytes_of(winograd_), bytes_of(paired_)}));
  }

  std::size_t workspace_bytes() const override { return workspace_.bytes(); }

  void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const override {
    require_threads("convolution", threads_, stream);
    if ((operands.bias != nullptr) != has_bias_) {
      throw std::invalid_argument("convolution: the plan and the call disagree about a bias");
    }
    const void* const input = factors_.input(stream, operands.input, workspace);
    const void* const weights = factors_.weights(stream, operands.weights, workspace);
    if (winograd_) {
      return winograd_->forward(stream, floats(input), floats(weights), operands.bias, operands.output.values,
                                workspace + behind_);
    }
    execute(stream, *forward_, {input, weights, operands.output.memory(), operands.bias}, workspace);
  }

  void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                     std::byte* workspace) const override {
    require_threads("convolution", threads_, stream);
    const void* const gradient =
        factors_.output_gradient(stream, operands.output_gradient, Workspace::kUndefined, workspace);
    const void* const weights = factors_.weights(stream, operands.weights, workspace);
    if (winograd_) {
      return winograd_->backward_data(stream, floats(weights), floats(gradient),
                                      operands.input_gradient.values, workspace + behind_);
    }
    execute(stream, *data_, {weights, gradient, operands.input_gradient.memory()}, workspace);
  }

  void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                        std::byte* workspace) const override {
    require_threads("convolution", threads_, stream);
    const void* const gradient =
        factors_.output_gradient(stream, operands.output_gradient, operands.workspace, workspace);
    const void* const input = factors_.input(stream, operands.input, workspace);
    if (paired_) {
      return paired_->run(stream, static_cast<const Bf16*>(input), static_cast<const Bf16*>(gradient),
                          operands.weight_gradient, operands.mode, workspace + behind_);
    }
    if (!weights_) {
      return winograd_->backward_weights(stream, floats(input), floats(gradient), operands.weight_gradient,
                                         operands.mode, workspace + behind_);
    }
    execute(stream, *weights_, {input, gradient, operands.weight_gradient}, workspace, operands.mode);
  }

 private:
  static const float* floats(const void* values) { return static_cast<const float*>(values); }
  template <typename Part>
  static std::size_t bytes_of(const std::optional<Part>& part) {
    return part ? part->workspace_bytes() : 0;
  }

  // Operands in the order of the primitive's.
  void execute(Stream& stream, StagedPrimitive& primitive, const std::array<const void*, 4>& operands,
               std::byte* workspace, GradientMode mode = GradientMode::kStore) const {
    stream.submit([primitive = &primitive, operands, workspace = workspace + behind_, mode] {
      // oneDNN's interface is not const-correct: inputs are only read.
      std::array<void*, 4> pointers{};
      for (std::size_t i = 0; i < operands.size(); ++i) pointers[i] = const_cast<void*>(operands[i]);
      primitive->execute(pointers.data(), workspace, mode);
    });
  }

  // What is not ours.
  void make_primitives(const ConvolutionSpec& spec, bool weight_gradient) {
    const PlanningThreads guard(threads_);
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const Type factor = spec.precision == MatrixPrecision::kBf16 ? Type::bf16 : Type::f32;
    const Type input = dnnl_type(spec.types.input), output = dnnl_type(spec.types.output);
    const Layouts forward(spec, {factor, factor, output});
    const auto hint = describe_forward(engine, forward.asked, forward.geometry);
    if (!winograd_) {
      make_forward(engine, forward, hint);
      make_backward_data(engine, Layouts(spec, {input, factor, factor}), hint);
    }
    if (weight_gradient) make_backward_weights(engine, Layouts(spec, {factor, Type::f32, factor}), hint);
  }

  void make_forward(const dnnl::engine& engine, const Layouts& layouts, const ForwardDescriptor& chosen) {
    std::vector<StagedPrimitive::Operand> operands{
        {DNNL_ARG_SRC, layouts.ours.input, chosen.src_desc(), Role::kInput},
        {DNNL_ARG_WEIGHTS, layouts.ours.weights, chosen.weights_desc(), Role::kInput},
        {DNNL_ARG_DST, layouts.ours.output, chosen.dst_desc(), Role::kOutput}};
    if (has_bias_) operands.push_back({DNNL_ARG_BIAS, layouts.ours.bias, layouts.ours.bias, Role::kInput});
    forward_.emplace(engine, dnnl::convolution_forward(chosen), chosen.scratchpad_desc(), operands);
  }

  void make_backward_data(const dnnl::engine& engine, const Layouts& layouts, const ForwardDescriptor& hint) {
    const auto chosen = describe_backward_data(engine, layouts.asked, layouts.geometry, hint);
    data_.emplace(engine, dnnl::convolution_backward_data(chosen), chosen.scratchpad_desc(),
                  std::vector<StagedPrimitive::Operand>{
                      {DNNL_ARG_WEIGHTS, layouts.ours.weights, chosen.weights_desc(), Role::kInput},
                      {DNNL_ARG_DIFF_DST, layouts.ours.output, chosen.diff_dst_desc(), Role::kInput},
                      {DNNL_ARG_DIFF_SRC, layouts.ours.input, chosen.diff_src_desc(), Role::kOutput}});
  }
  void make_backward_weights(const dnnl::engine& engine, const Layouts& layouts,
                             const ForwardDescriptor& hint) {
    const auto chosen = describe_backward_weights(engine, layouts.asked, layouts.geometry, hint);
    weights_.emplace(
        engine, dnnl::convolution_backward_weights(chosen), chosen.scratchpad_desc(),
        std::vector<StagedPrimitive::Operand>{
            {DNNL_ARG_SRC, layouts.ours.input, chosen.src_desc(), Role::kInput},
            {DNNL_ARG_DIFF_DST, layouts.ours.output, chosen.diff_dst_desc(), Role::kInput},
            {DNNL_ARG_DIFF_WEIGHTS, layouts.ours.weights, chosen.diff_weights_desc(), Role::kAccumulated}});
  }

  int threads_;
  bool has_bias_;
  ArenaPlan workspace_;
  PlanFactors factors_;
  std::size_t behind_ = 0;  // offset of the primitives' memory
  // Addresses of operands change from call to call, in the order of the one stream that uses the plan.
  mutable std::optional<StagedPrimitive> forward_, data_, weights_;
  std::optional<PairedWeightGradient> paired_;   // in place of weights_
  std::optional<WinogradConvolution> winograd_;  // in place of the others that are not there
};

}  // namespace
}  // namespace pipeoptim::host

namespace pipeoptim::detail {

std::unique_ptr<ConvolutionPlan> make_host_convolution(int threads, const ConvolutionSpec& spec) {
  if (host::suits_dense_convolution(spec)) return host::make_dense_convolution(threads, spec);
  try {
    return std::make_unique<host::HostConvolution>(threads, spec);
  } catch (const dnnl::error& error) {
    throw DeviceError("oneDNN, " + describe(spec), std::string(error.what()) + ", status " +
                                                       std::to_string(static_cast<int>(error.status)));
  }
}

}  // namespace pipeoptim::detail
