#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/runtime/buffer.h"
#include "layers/attention.h"
#include "layers/attention_scores.h"
#include "layers/bias.h"

namespace pipeoptim {
namespace {

using attention::Direction;

constexpr std::int64_t kMostBlocks = 4;  // of rows: leaves out 3/8 of the products, of the 1/2 that is hidden
constexpr std::int64_t kHostBlock = 64, kCudaBlock = 256;     // rows of a block at least
constexpr std::int64_t kCudaScores = std::int64_t{32} << 20;  // elements of one workspace array, about

}  // namespace

CausalSelfAttention::CausalSelfAttention(const AttentionOptions& options) : options_(options) {
  if (options.features < 1 || options.heads < 1 || options.features % options.heads != 0) {
    throw std::invalid_argument(describe() + ": the heads must divide the features");
  }
}

std::string CausalSelfAttention::describe() const {
  return "causal self-attention " + std::to_string(options_.features) + ", " +
         std::to_string(options_.heads) + " heads";
}

std::vector<Parameter> CausalSelfAttention::parameters() const {
  const std::int64_t f = options_.features;
  const auto normal = [](float deviation) { return Initializer{Initializer::Kind::kNormal, deviation}; };
  return {{.name = "c_attn.weight",
           .shape = {3 * f, f},
           .initializer = normal(options_.deviation),
           .may_be_rounded = true},
          {.name = "c_attn.bias", .shape = {3 * f}, .initializer = {}, .decay = Decay::kNo},
          {.name = "c_proj.weight",
           .shape = {f, f},
           .initializer = normal(options_.projection_deviation),
           .may_be_rounded = true},
          {.name = "c_proj.bias", .shape = {f}, .initializer = {}, .decay = Decay::kNo}};
}

// What is between its maps is planned.
ElementTypes CausalSelfAttention::choose_types(ElementTypes offered) {
  types_ = product_types(precision_, offered);
  return types_;
}

LayerPlan CausalSelfAttention::plan(Device device, int threads, const Shape& input) {
  const std::int64_t f = options_.features;
  if (input.rank() != 3 || input.last() != f || input.elements() < 1) {
    throw std::invalid_argument(describe() + ": the input must be NxTx" + std::to_string(f) + ", got " +
                                input.to_string());
  }
  records_ = input[0];
  length_ = input[1];
  const bool cuda = device.backend == Backend::kCuda;
  const std::int64_t least = cuda ? kCudaBlock : kHostBlock,
                     quarter = (length_ + kMostBlocks - 1) / kMostBlocks;
  block_ = std::max(least, (quarter + 15) / 16 * 16);
  const std::int64_t squares = options_.heads * length_ * length_;
  group_ = std::clamp<std::int64_t>(kCudaScores / squares, 1, records_);
  const std::int64_t scores = cuda ? group_ * squares : threads * length_ * length_;
  const host::HeadExtents heads{records_, length_, options_.heads, f / options_.heads};
  const bool tiled = !cuda && host::AttentionHeads::handles(heads.width, precision_);
  tiled_heads_.reset();
  if (tiled) tiled_heads_.emplace(threads, heads, precision_);
  inner_ = tiled ? tiled_heads_->type() : ElementType::kFp32;

  ArenaPlan stash, workspace;
  const auto inner_bytes = [&](std::int64_t features) { return tensor_bytes({rows(), features}, inner_); };
  qkv_ = stash.reserve(inner_bytes(3 * f));
  normalizers_ = stash.reserve(float_bytes(rows() * options_.heads * (tiled ? 2 : 1)));
  heads_output_ = stash.reserve(inner_bytes(f));
  qkv_gradient_ = (split_ == BackwardSplit::kSplit ? stash : workspace).reserve(inner_bytes(3 * f));
  probabilities_ = workspace.reserve(tiled ? tiled_heads_->workspace_bytes() : float_bytes(scores));
  score_gradients_ = workspace.reserve(tiled ? 0 : float_bytes(scores));
  heads_gradient_ = workspace.reserve(inner_bytes(f));
  addresses_ = workspace.reserve(
      cuda ? static_cast<std::size_t>(3 * group_ * options_.heads) * sizeof(const float*) : 0);
  const auto linear = [&](std::int64_t out, const ElementTypes& types) {
    return make_linear(
        device, threads,
        {.rows = rows(), .in = f, .out = out, .bias = Bias::kYes, .precision = precision_, .types = types});
  };
  attend_ = linear(3 * f, {.input = types_.input, .output = inner_});
  project_ = linear(f, {.input = inner_, .output = types_.output});
  product_ = workspace.reserve(std::max(attend_->workspace_bytes(), project_->workspace_bytes()));

  LayerPlan plan;
  plan.output = input;
  plan.stash_bytes = stash.bytes();
  plan.workspace_bytes = workspace.bytes();
  plan.needs = Needs::kInput;
  const auto all_rows = static_cast<double>(rows());
  const double projections = 2.0 * all_rows * static_cast<double>(4 * f * f);
  const double products =
      2.0 * all_rows * static_cast<double>(f * length_) / 2;  // of the scores, half of them hidden
  plan.forward_flops = projections + 2 * products;
  plan.backward_flops = 2 * projections + 5 * products;
  plan.bytes = sizeof(float) * all_rows * static_cast<double>(30 * f) +
               3.0 * sizeof(float) * static_cast<double>(4 * f * f);
  return plan;
}

void CausalSelfAttention::mix(Stream& stream, std::byte* stash, std::byte* workspace,
                              const HeadGradients* gradients) const {
  const Tensor qkv = inner(stash, qkv_), output = inner(stash, heads_output_);
  float* const normalizers = floats_at(stash, normalizers_);
  if (tiled_heads_) {
    const host::AttentionHeads::Operands operands{ConstTensor(qkv).factor(), normalizers};
    std::byte* const scratch = workspace + probabilities_;
    if (gradients == nullptr) return tiled_heads_->forward(stream, operands, output.destination(), scratch);
    return tiled_heads_->backward(stream, operands, ConstTensor(gradients->output).factor(),
                                  gradients->qkv.destination(), scratch);
  }
  attention::run_heads(stream,
                       {.features = options_.features,
                        .length = length_,
                        .width = options_.features / options_.heads,
                        .block = block_,
                        .precision = precision_,
                        .qkv = qkv.data,
                        .normalizers = normalizers,
                        .mixed = output.data,
                        // The forward does not use the gradients.
                        .mixed_gradient = gradients == nullptr ? output.data : gradients->output.data,
                        .qkv_gradient = gradients == nullptr ? qkv.data : gradients->qkv.data,
                        .scores = floats_at(workspace, probabilities_),
                        .score_gradients = floats_at(workspace, score_gradients_)},
                       records_, options_.heads, group_, addresses(workspace),
                       gradients == nullptr ? Direction::kForward : Direction::kBackward);
}

void CausalSelfAttention::forward(const ForwardContext& context) const {
  if (length_ == 0) throw std::logic_error(describe() + ": run before plan()");
  std::byte* const product = context.workspace + product_;
  attend_->forward(context.stream,
                   {.input = context.input.factor(),
                    .weights = context.weights.factor(0),
                    .bias = context.weights[1],
                    .output = inner(context.stash, qkv_).destination()},
                   product);
  mix(context.stream, context.stash, context.workspace, nullptr);
  project_->forward(context.stream,
                    {.input = ConstTensor(inner(context.stash, heads_output_)).factor(),
                     .weights = context.weights.factor(2),
                     .bias = context.weights[3],
                     .output = context.output.destination()},
                    product);
}

Tensor CausalSelfAttention::qkv_gradient(const BackwardContext& context) const {
  return inner(split_ == BackwardSplit::kSplit ? context.stash : context.workspace, qkv_gradient_);
}

void CausalSelfAttention::run_input(const BackwardContext& context) const {
  const HeadGradients gradients{inner(context.workspace, heads_gradient_), qkv_gradient(context)};
  std::byte* const product = context.workspace + product_;
  project_->backward_input(context.stream,
                           {.weights = context.weights.factor(2),
                            .output_gradient = context.output_gradient.factor(),
                            .input_gradient = gradients.output.destination()},
                           product);
  mix(context.stream, context.stash, context.workspace, &gradients);
  if (!context.input_gradient.there()) return;
  attend_->backward_input(context.stream,
                          {.weights = context.weights.factor(0),
                           .output_gradient = ConstTensor(gradients.qkv).factor(),
                           .input_gradient = context.input_gradient.destination()},
                          product);
}

// The input gradient of c_attn is the last product in the workspace before this.
void CausalSelfAttention::run_weights(const BackwardContext& context, Workspace holds) const {
  std::byte* const product = context.workspace + product_;
  attend_->backward_weights(context.stream,
                            {.input = context.input.factor(),
                             .output_gradient = ConstTensor(qkv_gradient(context)).factor(),
                             .weight_gradient = context.gradients[0],
                             .bias_gradient = context.gradients[1],
                             .mode = context.gradients.mode,
                             .workspace = holds},
                            product);
  project_->backward_weights(context.stream,
                             {.input = ConstTensor(inner(context.stash, heads_output_)).factor(),
                              .output_gradient = context.output_gradient.factor(),
                              .weight_gradient = context.gradients[2],
                              .bias_gradient = context.gradients[3],
                              .mode = context.gradients.mode},
                             product);
}

void CausalSelfAttention::backward(const BackwardContext& context) const {
  run_input(context);
  run_weights(context, after_input_gradient(context));
}
void CausalSelfAttention::backward_input(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) throw std::logic_error(describe() + ": joined, call backward()");
  run_input(context);
}
void CausalSelfAttention::backward_weights(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) throw std::logic_error(describe() + ": joined, call backward()");
  run_weights(context, Workspace::kUndefined);
}

}  // namespace pipeoptim
