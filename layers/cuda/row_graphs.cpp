#include "layers/cuda/row_graphs.h"

#include <array>
#include <utility>

#include "layers/cuda/frontend.h"

namespace pipeoptim::cuda {
namespace {

constexpr auto kFloat = fe::DataType_t::FLOAT;
constexpr auto kPosition = fe::DataType_t::INT8;  // of a maximum inside its window
constexpr std::int64_t kMostPositions = 127;
constexpr std::size_t kMaxWorkspace = std::size_t{1} << 28;  // bytes; cuDNN's engines take some hundred KiB

fe::DataType_t type_of(ElementType type) {
  return type == ElementType::kBf16 ? fe::DataType_t::BFLOAT16 : kFloat;
}

class RowGraph : public PlannableGraph {
 protected:
  explicit RowGraph(ElementType type) : type_(type_of(type)) {
    set_io_data_type(type_).set_intermediate_data_type(kFloat).set_compute_data_type(kFloat);
  }
  void give_values(const GraphTensor& result, const Shape& nhwc, std::int64_t id) const {
    give(result, nhwc, id, type_);
  }

 private:
  fe::DataType_t type_;
};

class NormGraph : public RowGraph {
 protected:
  explicit NormGraph(const VendorNormSpec& spec)
      : RowGraph(spec.type), shape_(spec.input), channels_{1, 1, 1, spec.input.last()} {}

  const Shape& shape() const { return shape_; }
  GraphTensor take_channels(std::int64_t id) {
    const GraphTensor taken = take(channels_, id);
    taken->set_data_type(kFloat);
    return taken;
  }
  void give_channels(const GraphTensor& result, std::int64_t id) const {
    give(result, channels_, id, kFloat);
  }
  // Its value is read from host memory when the plan runs.
  GraphTensor take_scalar(float value, std::int64_t id) {
    GraphTensor scalar = tensor(value);
    scalar->set_uid(id);
    return scalar;
  }

 private:
  Shape shape_, channels_;
};

class NormForwardGraph final : public NormGraph {
 public:
  explicit NormForwardGraph(const VendorNormSpec& spec) : NormGraph(spec) {
    GraphTensor epsilon = take_scalar(spec.eps, kEpsilon), momentum = take_scalar(spec.momentum, kMomentum),
                running_mean = take_channels(kRunningMean),
                running_variance = take_channels(kRunningVariance);
    fe::graph::Batchnorm_attributes attributes;
    attributes.set_epsilon(epsilon).set_previous_running_stats(running_mean, running_variance, momentum);
    const auto [y, mean, reciprocal, next_mean, next_variance] =
        batchnorm(take(shape(), kX), take_channels(kScale), take_channels(kBias), attributes);
    give_channels(mean, kMean);
    give_channels(reciprocal, kReciprocal);
    give_channels(next_mean, kNextMean);
    give_channels(next_variance, kNextVariance);
    GraphTensor result = y;
    if (spec.activation == Activation::kRelu) {
      lay_out(*y, shape());
      const auto relu = fe::graph::Pointwise_attributes().set_mode(fe::PointwiseMode_t::RELU_FWD);
      result = pointwise(y, relu);
    }
    give_values(result, shape(), kY);
  }
};

class NormBackwardGraph final : public NormGraph {
 public:
  explicit NormBackwardGraph(const VendorNormSpec& spec) : NormGraph(spec) {
    GraphTensor mean = take_channels(kMean), reciprocal = take_channels(kReciprocal);
    fe::graph::Batchnorm_backward_attributes attributes;
    attributes.set_saved_mean_and_inv_variance(mean, reciprocal);
    const auto [dx, scale_gradient, bias_gradient] =
        batchnorm_backward(take(shape(), kYGradient), take(shape(), kX), take_channels(kScale), attributes);
    give_values(dx, shape(), kXGradient);
    give_channels(scale_gradient, kScaleGradient);
    give_channels(bias_gradient, kBiasGradient);
  }
};

Extents extents(const std::array<std::int64_t, 2>& pair) { return {pair[0], pair[1]}; }

fe::ResampleMode_t mode_of(PoolKind kind) {
  return kind == PoolKind::kMaximum ? fe::ResampleMode_t::MAXPOOL
                                    : fe::ResampleMode_t::AVGPOOL_INCLUDE_PADDING;
}
fe::PaddingMode_t padding_of(PoolKind kind) {
  return kind == PoolKind::kMaximum ? fe::PaddingMode_t::NEG_INF_PAD : fe::PaddingMode_t::ZERO_PAD;
}

class PoolForwardGraph final : public RowGraph {
 public:
  explicit PoolForwardGraph(const VendorPoolSpec& spec) : RowGraph(spec.type) {
    const bool chooses = spec.kind == PoolKind::kMaximum;
    const auto [y, chosen] = resample(take(spec.input, kX), fe::graph::Resample_attributes()
                                                                .set_resampling_mode(mode_of(spec.kind))
                                                                .set_padding_mode(padding_of(spec.kind))
                                                                .set_window(extents(spec.window))
                                                                .set_stride(extents(spec.stride))
                                                                .set_pre_padding(extents(spec.padding))
                                                                .set_post_padding(extents(spec.padding))
                                                                .set_generate_index(chooses));
    give_values(y, spec.output, kY);
    if (chooses) give(chosen, spec.output, kChosen, kPosition);
  }
};

// The frontend's graphs have no backward of pooling; its descriptors have.
fe::Tensor describe(const Shape& nhwc, fe::DataType_t type, std::int64_t id) {
  fe::graph::Tensor_attributes attributes;
  lay_out(attributes, nhwc);
  const Extents extents = attributes.get_dim(), strides = attributes.get_stride();
  return fe::TensorBuilder()
      .setDim(static_cast<std::int64_t>(extents.size()), extents.data())
      .setStride(static_cast<std::int64_t>(strides.size()), strides.data())
      .setId(id)
      .setAlignment(16)
      .setDataType(type)
      .build();
}

fe::ResampleDesc describe_pool(const VendorPoolSpec& spec) {
  return fe::ResampleDescBuilder_v8()
      .setComputeType(kFloat)
      .setNanPropagation(CUDNN_PROPAGATE_NAN)
      .setResampleMode(mode_of(spec.kind))
      .setPaddingMode(padding_of(spec.kind))
      .setSpatialDim(2, spec.window.data())
      .setSpatialStride(2, spec.stride.data())
      .setPrePadding(2, spec.padding.data())
      .setPostPadding(2, spec.padding.data())
      .build();
}

// The first of cuDNN's ranking that is deterministic, needs no more workspace than others may, and builds.
GraphPlan first_plan(cudnnHandle_t handle, fe::OperationGraph& graph) {
  GraphPlan plan{.refusal = "cuDNN ranks no engine"};
  auto ranking =
      fe::EngineHeuristicsBuilder().setOperationGraph(graph).setHeurMode(CUDNN_HEUR_MODE_A).build();
  for (auto& configuration : ranking.getEngineConfig(ranking.getEngineConfigCount())) {
    if (fe::hasNumericalNote<CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC>(configuration->get_backend_descriptor()))
      continue;
    try {
      auto made = std::make_shared<fe::ExecutionPlan>(fe::ExecutionPlanBuilder()
                                                          .setHandle(handle)
                                                          .setEngineConfig(configuration, graph.getTag())
                                                          .build());
      if (made->getWorkspaceSize() > static_cast<std::int64_t>(kMaxWorkspace)) continue;
      plan.descriptor = made->get_raw_desc();
      plan.workspace_bytes = static_cast<std::size_t>(made->getWorkspaceSize());
      plan.owner = std::move(made);
      return plan;
    } catch (const fe::cudnnException& error) {
      plan.refusal = error.what();
    }
  }
  return plan;
}

GraphPlan make_pool_backward(cudnnHandle_t handle, const VendorPoolSpec& spec) {
  const fe::Tensor dx = describe(spec.input, type_of(spec.type), kXGradient),
                   dy = describe(spec.output, type_of(spec.type), kYGradient),
                   chosen = describe(spec.output, kPosition, kChosen);
  const fe::ResampleDesc pool = describe_pool(spec);
  fe::OperationBuilder builder(fe::DescriptorType_t::OPERATION_RESAMPLE_BWD_DESCRIPTOR);
  builder.setdxDesc(dx).setdyDesc(dy).setResampleDesc(pool);
  if (spec.kind == PoolKind::kMaximum) builder.setidxDesc(chosen);
  const fe::Operation operation = builder.build();
  std::array<const fe::Operation*, 1> operations{&operation};
  fe::OperationGraph graph =
      fe::OperationGraphBuilder().setHandle(handle).setOperationGraph(1, operations.data()).build();
  return first_plan(handle, graph);
}

// On an H200 the engine of the fallbacks took 0.35 to 1.19 of the time of the ranking's first (docs/cuda.md).
template <typename Graph>
GraphPlan plan_norm(cudnnHandle_t handle, const VendorNormSpec& spec) {
  return attempt([&] {
    GraphPlan plan;
    for (const Engines engines : {Engines::kFallback, Engines::kBest}) {
      plan = Graph(spec).plan(handle, engines, {fe::NumericalNote_t::NONDETERMINISTIC}, kMaxWorkspace);
      if (plan.descriptor != nullptr) break;
    }
    return plan;
  });
}

}  // namespace

GraphPlan plan_norm_forward(cudnnHandle_t handle, const VendorNormSpec& spec) {
  return plan_norm<NormForwardGraph>(handle, spec);
}

GraphPlan plan_norm_backward(cudnnHandle_t handle, const VendorNormSpec& spec) {
  return plan_norm<NormBackwardGraph>(handle, spec);
}

GraphPlan plan_pool_forward(cudnnHandle_t handle, const VendorPoolSpec& spec) {
  if (spec.kind == PoolKind::kMean && spec.type == ElementType::kBf16)
    return {.refusal = "on an H200 every other mean that cuDNN stored in bf16 was none"};
  if (spec.kind == PoolKind::kMaximum && spec.window[0] * spec.window[1] > kMostPositions)
    return {.refusal = "positions in the window are remembered in a signed byte"};
  return attempt([&] {
    return PoolForwardGraph(spec).plan(handle, Engines::kBest, {fe::NumericalNote_t::NONDETERMINISTIC},
                                       kMaxWorkspace);
  });
}

GraphPlan plan_pool_backward(cudnnHandle_t handle, const VendorPoolSpec& spec) {
  return attempt([&] { return make_pool_backward(handle, spec); });
}

}  // namespace pipeoptim::cuda
