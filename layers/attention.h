// Causal self-attention with several heads. Vaswani et al., arXiv 1706.03762; names and layout as GPT-2's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "layers/host/attention_heads.h"
#include "layers/layer.h"
#include "layers/provider.h"

namespace pipeoptim {

struct AttentionOptions {
  std::int64_t features = 0;
  std::int64_t heads = 1;
  float deviation = 0.02F;             // of the first values of c_attn.weight
  float projection_deviation = 0.02F;  // and of c_proj.weight; biases begin at 0
};

// {N, T, features} -> the same: y = c_proj(concat over heads of softmax(q k^T / sqrt(features / heads)) v),
// where position t sees the positions up to t, and [q, k, v] = c_attn(x). Parameters c_attn.weight [3
// features, features], c_attn.bias, c_proj.weight [features, features], c_proj.bias.
//
// Forward keeps q, k, v, the heads' outputs and a number or two a row of scores; backward makes the scores
// again, so that no memory in flight grows with the square of T. Each thread of the host goes through one
// head after the other, CUDA through groups of records whose scores fit a bounded workspace. Rows of scores
// are made in blocks, which leave out most of what the mask hides. On a host with AVX-512 heads of features
// in sixteens are host::AttentionHeads; with factors in bf16 what lies between the maps is bf16 there,
// and nowhere else.
class CausalSelfAttention final : public Layer {
 public:
  // Throws std::invalid_argument unless both are positive and the heads divide the features.
  explicit CausalSelfAttention(const AttentionOptions& options);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  ElementTypes choose_types(ElementTypes offered) override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward(const BackwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;
  void set_backward_split(BackwardSplit split) override { split_ = split; }
  void set_precision(MatrixPrecision precision) override { precision_ = precision; }

 private:
  std::int64_t rows() const { return records_ * length_; }
  // A tensor between the two maps.
  Tensor inner(std::byte* arena, std::size_t offset) const { return Tensor::at(arena + offset, inner_, {}); }
  Tensor qkv_gradient(const BackwardContext& context) const;
  const float** addresses(std::byte* workspace) const {
    return reinterpret_cast<const float**>(workspace + addresses_);
  }
  struct HeadGradients {
    Tensor output, qkv;  // the second is written
  };
  // The values of each head, by its probabilities; with gradients, backward.
  void mix(Stream& stream, std::byte* stash, std::byte* workspace, const HeadGradients* gradients) const;
  void run_input(const BackwardContext& context) const;
  void run_weights(const BackwardContext& context, Workspace holds) const;

  AttentionOptions options_;
  BackwardSplit split_ = BackwardSplit::kJoined;
  ElementTypes types_;
  ElementType inner_ = ElementType::kFp32;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  std::int64_t records_ = 0, length_ = 0;  // 0 before plan()
  std::int64_t group_ = 1;                 // CUDA: records whose scores are in the workspace together
  std::int64_t block_ = 1;                 // rows of scores that one product makes
  // Offsets in bytes: in the stash, and in the workspace.
  std::size_t qkv_ = 0, normalizers_ = 0, heads_output_ = 0, qkv_gradient_ = 0;
  std::size_t probabilities_ = 0, score_gradients_ = 0, heads_gradient_ = 0, addresses_ = 0, product_ = 0;
  std::unique_ptr<LinearPlan> attend_, project_;  // c_attn and c_proj
  std::optional<host::AttentionHeads> tiled_heads_;
};

}  // namespace pipeoptim
