// Parallel branches whose outputs are joined along the channels (Inception: Szegedy et al., arXiv 1409.4842).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/sequence.h"

namespace pipeoptim {

// All branches read the same input and differ at most in the last extent of their outputs. Branch `i`'s
// layers are named "<i>.<name>". The branches run one after the other on the caller's stream.
class Concat final : public Layer {
 public:
  explicit Concat(std::vector<std::vector<NamedLayer>> branches);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  std::vector<State> states() const override;
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
  struct Branch {
    std::unique_ptr<Sequence> layers;
    LayerPlan plan;
    std::size_t first_parameter = 0, parameters = 0, first_state = 0, states = 0;
    // Offsets: the branch's stash, its output (in the stash where its backward reads it, else in the
    // workspace) and its output's gradient (in the stash when split, else in the workspace).
    std::size_t stash = 0, output = 0, gradient = 0;
    std::int64_t first_channel = 0;
    std::uint64_t random_layer = 0;
  };
  void run_backward(const BackwardContext& context, Half half) const;

  BackwardSplit split_ = BackwardSplit::kJoined;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  std::vector<Branch> branches_;
  std::size_t input_gradient_ = 0, branch_workspace_ = 0;
};

}  // namespace pipeoptim
