#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/batch_norm_parts.h"
#include "layers/typed.h"

namespace pipeoptim::batch_norm {
namespace {

// From what cuDNN has left: the forward's line, and the running statistics, which it writes elsewhere.
struct TakeMoments {
  const float *weight, *bias;
  const float *next_mean, *next_variance;
  float *running_mean, *running_variance;
  Vectors to;
  PO_HD void operator()(std::int64_t c) const {
    to.scale[c] = weight[c] * to.rstd[c];
    to.shift[c] = bias[c] - to.mean[c] * to.scale[c];
    running_mean[c] = next_mean[c];
    running_variance[c] = next_variance[c];
  }
};

template <int>
struct AsItIs {
  PO_HD AsItIs(const Vectors&, std::int64_t) {}
  PO_HD float operator()(int, float g, float) const { return g; }
};

// The gradient of what the norm gives, in the workspace where the ReLU is part of the layer.
ConstTensor behind_activation(const BackwardContext& context, Activation activation, const Vectors& vectors,
                              std::byte* memory) {
  const ConstTensor& given = context.output_gradient;
  if (activation == Activation::kNone) return given;
  const ElementType type = given.rounded != nullptr ? ElementType::kBf16 : ElementType::kFp32;
  const Tensor behind = Tensor::at(memory, type, given.shape);
  const Chunks chunks = chunks_of(context.stream, context.input);
  with_type_of(given, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    const T* const dy = values_of<T>(given);
    T* const g = values_of<T>(behind);
    for_each_row(context.stream, chunks.count(), chunks.channels,
                 MapGradient<Activation::kRelu, T, AsItIs>{
                     x, dy, g, vectors, chunks, allow_tiles(chunks.channels, x, dy, g, vectors.scale)});
  });
  return behind;
}

// Where things lie in the workspace: cuDNN's own comes first.
struct Places {
  std::size_t next_mean = 0, next_variance = 0, gradient = 0, bytes = 0;

  Places(const VendorNorm& norm, std::int64_t channels, std::size_t gradient_bytes) {
    ArenaPlan plan;
    plan.reserve(norm.workspace_bytes());
    next_mean = plan.reserve(float_bytes(channels));
    next_variance = plan.reserve(float_bytes(channels));
    gradient = plan.reserve(gradient_bytes);
    bytes = plan.bytes();
  }
};

}  // namespace

std::size_t vendor_workspace(const VendorNorm& norm, const VendorNormSpec& spec) {
  const bool relu = spec.activation == Activation::kRelu;
  return Places(norm, spec.input.last(), relu ? tensor_bytes(spec.input, spec.type) : 0).bytes;
}

void forward_by(const VendorNorm& norm, const ForwardContext& context, const Vectors& vectors) {
  const std::int64_t channels = context.input.shape.last();
  const Places places(norm, channels, 0);
  auto* const next_mean = reinterpret_cast<float*>(context.workspace + places.next_mean);
  auto* const next_variance = reinterpret_cast<float*>(context.workspace + places.next_variance);
  norm.forward(context.stream,
               {.x = context.input,
                .y = context.output,
                .weight = context.weights[0],
                .bias = context.weights[1],
                .running_mean = context.states[0],
                .running_variance = context.states[1],
                .next_mean = next_mean,
                .next_variance = next_variance,
                .mean = vectors.mean,
                .rstd = vectors.rstd},
               context.workspace);
  for_each(context.stream, channels,
           TakeMoments{context.weights[0], context.weights[1], next_mean, next_variance, context.states[0],
                       context.states[1], vectors});
}

void backward_by(const VendorNorm& norm, const BackwardContext& context, Activation activation,
                 const Vectors& vectors) {
  const Places places(norm, context.input.shape.last(), 0);
  norm.backward(context.stream,
                {.x = context.input,
                 .output_gradient =
                     behind_activation(context, activation, vectors, context.workspace + places.gradient),
                 .input_gradient = context.input_gradient,
                 .weight = context.weights[0],
                 .mean = vectors.mean,
                 .rstd = vectors.rstd,
                 .weight_gradient = vectors.product,
                 .bias_gradient = vectors.sum},
                context.workspace);
}

}  // namespace pipeoptim::batch_norm
