// The residual block: y = body(x) + shortcut(x), He et al., arXiv 1512.03385.
#pragma once

#include <string>
#include <vector>

#include "layers/sequence.h"

namespace pipeoptim {

enum class FinalActivation { kNone, kRelu };

// Layers of body and shortcut keep their names as they are given, so that "conv1" in a block named "layer1.0"
// is "layer1.0.conv1". An empty shortcut is the identity. Both branches run on the caller's stream, body
// first.
class Residual final : public Layer {
 public:
  Residual(std::vector<NamedLayer> body, std::vector<NamedLayer> shortcut = {},
           FinalActivation activation = FinalActivation::kRelu);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  std::vector<State> states() const override;
  ElementTypes choose_types(ElementTypes offered) override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward(const BackwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;
  void set_backward_split(BackwardSplit split) override { split_ = split; }
  void set_precision(MatrixPrecision precision) override { precision_ = precision; }
  void set_row_kernels(RowKernels kernels) override;
  int random_layers() const override;

 private:
  enum class Half { kBoth, kInput, kWeights };
  Tensor output_at(std::byte* memory, std::size_t offset) const;
  void run_backward(const BackwardContext& context, Half half) const;

  BackwardSplit split_ = BackwardSplit::kJoined;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  ElementTypes types_;
  FinalActivation activation_;
  Sequence body_;
  std::unique_ptr<Sequence> shortcut_;  // null: identity
  LayerPlan body_plan_, shortcut_plan_;
  std::size_t body_parameters_ = 0, body_states_ = 0;
  // Offsets in the stash: the branches' own, the branch outputs that a branch's backward reads, and, when the
  // halves of backward are apart, the gradient behind the activation. Otherwise the body's output is summed
  // where it lies, in the block's output, and the rest is in the workspace.
  std::size_t shortcut_stash_ = 0, body_output_ = 0, shortcut_output_ = 0, sum_gradient_ = 0;
  // Offsets in the workspace.
  std::size_t branch_gradient_ = 0, branch_workspace_ = 0;
  bool body_output_kept_ = false, shortcut_output_kept_ = false;
  bool gradient_in_stash_ = false;
};

}  // namespace pipeoptim
