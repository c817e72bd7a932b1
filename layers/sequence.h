// A planned chain of layers: decides where activations lie, what is kept for backward and what shares memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "layers/layer.h"

namespace pipeoptim {

// Throws std::invalid_argument, naming it, where there is no layer.
void require_layer(const NamedLayer& named);

// The types at the boundaries of a chain of layers, `ends` at most at its ends: bf16 where products are in
// bf16 and the layers on both sides can. Boundary i lies in front of layer i. Tells the layers their
// precision and types.
std::vector<ElementType> agree_on_types(std::span<Layer* const> layers, MatrixPrecision precision,
                                        ElementTypes ends);

// Boundary i lies between layer i-1 and layer i; boundary 0 is the input, the last one the output (both the
// caller's). An inner boundary is kept in the stash when a neighbour's backward needs it, else it lies in the
// workspace; an in-place layer's output shares its input's memory where nobody needs that input again.
class Sequence final : public Layer {
 public:
  struct Child {
    std::string name;
    LayerPtr layer;
    LayerPlan plan;
  };

  explicit Sequence(std::vector<NamedLayer> layers, BackwardSplit split = BackwardSplit::kJoined);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  std::vector<State> states() const override;
  ElementTypes choose_types(ElementTypes offered) override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;
  void backward(const BackwardContext& context) const override;
  void set_backward_split(BackwardSplit split) override { split_ = split; }
  void set_precision(MatrixPrecision precision) override { precision_ = precision; }
  void set_row_kernels(RowKernels kernels) override;
  int random_layers() const override;

  const std::vector<Child>& children() const { return children_; }

 private:
  enum class Home { kInput, kOutput, kStash, kWorkspace };
  struct Boundary {
    Shape shape;
    ElementType type = ElementType::kFp32;
    Home home = Home::kWorkspace;
    std::size_t offset = 0;  // bytes, in the stash or the workspace
    bool kept = false;       // survives until backward
    Home gradient_home = Home::kWorkspace;
    std::size_t gradient_offset = 0;
    std::size_t bytes() const { return tensor_bytes(shape, type); }
  };
  // A child's share of the sequence's lists.
  struct Share {
    std::size_t first_parameter = 0, parameters = 0;
    std::size_t first_state = 0, states = 0;
    std::size_t stash_offset = 0;
    std::uint64_t random_layer = 0;
  };

  void place_activations(ArenaPlan& stash, ArenaPlan& workspace);
  void place_gradients(ArenaPlan& stash, ArenaPlan& workspace);
  bool output_shares_input(std::size_t child) const;
  static Tensor value(const Boundary& boundary, const Tensor& input, const Tensor& output, std::byte* stash,
                      std::byte* workspace);
  static Tensor gradient(const Boundary& boundary, const BackwardContext& context);
  std::size_t last_in_backward(const BackwardContext& context) const;
  BackwardContext child_context(std::size_t child, const BackwardContext& context) const;

  std::vector<Child> children_;
  BackwardSplit split_;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  ElementTypes types_;
  std::vector<Boundary> boundaries_;
  std::vector<Share> shares_;
  std::size_t first_trained_ = 0;    // the first child with parameters
  std::size_t child_workspace_ = 0;  // offset of the children's common workspace
};

}  // namespace pipeoptim
