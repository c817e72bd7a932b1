// A long short-term memory layer. Hochreiter and Schmidhuber 1997, in PyTorch's form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "layers/layer.h"
#include "layers/provider.h"

namespace pipeoptim {

// {N, T, in} -> {N, T, hidden}, one layer in one direction from a zero state:
//
//   [i, f, g, o] = weight_ih_l0 x_t + bias_ih_l0 + weight_hh_l0 h_(t-1) + bias_hh_l0
//   c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)
//
// Parameters weight_ih_l0 [4 hidden, in], weight_hh_l0 [4 hidden, hidden], bias_ih_l0, bias_hh_l0 [4 hidden].
// The input's part is one product for all steps, as are the gradients of weights and input; a step is a
// product and one kernel.
class Lstm final : public Layer {
 public:
  // Throws std::invalid_argument unless both are positive.
  Lstm(std::int64_t in, std::int64_t hidden);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward(const BackwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;
  void set_backward_split(BackwardSplit split) override { split_ = split; }
  void set_precision(MatrixPrecision precision) override { precision_ = precision; }

 private:
  std::int64_t rows() const { return records_ * length_; }
  float* gate_gradient(const BackwardContext& context) const;
  void run_input(const BackwardContext& context) const;
  void run_weights(const BackwardContext& context, Workspace holds) const;

  std::int64_t in_, hidden_;
  BackwardSplit split_ = BackwardSplit::kJoined;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  std::int64_t records_ = 0, length_ = 0;  // 0 before plan()
  // Offsets in bytes: in the stash, and in the workspace.
  std::size_t gates_ = 0, cells_ = 0, gate_gradient_ = 0;
  bool transposes_ = false;  // whether forward works with weight_hh^T
  std::size_t transposed_ = 0, state_gradient_ = 0, cell_gradient_ = 0, earlier_ = 0, sums_ = 0,
              bias_gradient_ = 0, product_ = 0;
  std::unique_ptr<LinearPlan> of_input_;  // the product with weight_ih
};

}  // namespace pipeoptim
