// The layer API. A layer is a pure function of (weights, inputs): what backward needs is written to a stash
// by forward and read from it later, so any number of mini-batches can be in flight. Its life:
//
//   1. construct it with its hyper-parameters;
//   2. plan(device, input shape) once: fixes shapes, says how many bytes it needs, prepares vendor plans;
//   3. forward / backward_input / backward_weights any number of times: const, asynchronous on the context's
//   stream,
//      no allocation. One planned layer is used by one stream at a time (its workspace is shared).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/stream.h"
#include "layers/tensor.h"

namespace pipeoptim {

// How a parameter's first values are drawn (PyTorch's defaults for the layer that owns it).
struct Initializer {
  enum class Kind { kConstant, kUniform, kNormal };
  Kind kind = Kind::kConstant;
  float value = 0;  // constant; half-width of a uniform around 0; deviation of a normal around 0
};

// Storage order of a parameter in the arena. Files always hold PyTorch's order.
enum class Storage {
  kRowMajor,     // as PyTorch
  kChannelsLast  // a convolution's weight: shape [out,in,kh,kw] (PyTorch), stored as [out,kh,kw,in]
};

enum class Decay { kYes, kNo };  // whether weight decay applies (not on biases and norms)

// One trained tensor. `name` is relative to the layer ("weight"), `shape` is PyTorch's.
struct Parameter {
  std::string name;
  Shape shape;
  Initializer initializer;
  Decay decay = Decay::kYes;
  Storage storage = Storage::kRowMajor;
  // Read by nothing but products whose factors may be rounded to bf16: a pass may be given its bf16 copy.
  bool may_be_rounded = false;
};

// One tensor that is saved but not trained or predicted (batch norm's running statistics).
struct State {
  std::string name;
  Shape shape;
  float initial = 0;
};

// What backward reads beside the stash; decides which activations a stage keeps.
enum class Needs { kNothing, kInput, kOutput, kInputAndOutput };
constexpr bool needs_input(Needs needs) { return needs == Needs::kInput || needs == Needs::kInputAndOutput; }
constexpr bool needs_output(Needs needs) {
  return needs == Needs::kOutput || needs == Needs::kInputAndOutput;
}

// Everything a planned layer promises, fixed before anything runs.
struct LayerPlan {
  Shape output;
  std::size_t stash_bytes = 0;      // per mini-batch in flight
  std::size_t workspace_bytes = 0;  // per stage, contents undefined between calls
  Needs needs = Needs::kInput;
  bool in_place = false;      // output may be the input's memory, and, for a layer without parameters, the
                              // input gradient the output gradient's, where both are of one type
  bool random = false;        // its work depends on the RandomKey, so a pass cannot be captured and repeated
  double forward_flops = 0;   // for partitioning: floating point operations of one forward,
  double backward_flops = 0;  // of both backwards,
  double bytes = 0;           // and bytes moved by all three
};

// Of a layer's input and output; gradients have the types of their values.
struct ElementTypes {
  ElementType input = ElementType::kFp32;
  ElementType output = ElementType::kFp32;
  friend bool operator==(const ElementTypes&, const ElementTypes&) = default;
};
// The answer to Layer::choose_types of a layer whose output has the type of its input.
constexpr ElementTypes same_types(ElementTypes offered) {
  return offered.input == offered.output ? offered : ElementTypes{};
}

enum class Mode { kTraining, kEvaluation };

// How products and convolutions may be computed. The factors are rounded to 10 bits of mantissa (kTf32: on
// CUDA only, the host's stay fp32) or 7 (kBf16), the sums are fp32, and results are rounded where they are
// stored in bf16, or where cuDNN has a convolution with such a result only. Factors of products without
// weights are rounded on CUDA, by the product itself. On the host those of attention's heads are where they
// are stored in bf16 (host::AttentionHeads); the others, as an LSTM's states, would take a pass over values
// that are used once.
enum class MatrixPrecision { kFp32, kTf32, kBf16 };

// Whose kernels batch norm (in training) and pooling are on CUDA.
enum class RowKernels {
  kOwn,   // ours, which the host has, too
  kCudnn  // cuDNN's where it has plans for the shape, else ours
};

// What a layer applies to its output in the same pass, where it offers that.
enum class Activation { kNone, kRelu };

// Whether the gradients between the layers of a composite outlive backward_input.
enum class BackwardSplit {
  kJoined,  // no: backward() does both halves, and the halves alone throw std::logic_error
  kSplit    // yes: they lie in the stash, so backward_weights may run long after backward_input
};

// Identifies the random numbers of one layer and mini-batch; the same on every schedule, backend and thread
// count.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint64_t minibatch = 0;  // counts micro-batches where there are several
  std::uint64_t layer = 0;      // index of the layer in the whole model
};

// Base pointers of one layer's parameters, in the order of parameters(). `rounded` is empty, or holds for
// each parameter its bf16 copy or null; where there is a bf16 copy, there is no other. Three types, so that a
// forward cannot be given the backward's weights by mistake.
struct ForwardWeights {
  std::span<const float* const> pointers;
  std::span<const Bf16* const> rounded = {};
  const float* operator[](std::size_t i) const { return pointers[i]; }
  Factor factor(std::size_t i) const { return {pointers[i], rounded.empty() ? nullptr : rounded[i]}; }
  ForwardWeights slice(std::size_t first, std::size_t count = std::dynamic_extent) const {
    return {pointers.subspan(first, count), rounded.empty() ? rounded : rounded.subspan(first, count)};
  }
};
struct BackwardWeights {
  std::span<const float* const> pointers;
  std::span<const Bf16* const> rounded = {};
  const float* operator[](std::size_t i) const { return pointers[i]; }
  Factor factor(std::size_t i) const { return {pointers[i], rounded.empty() ? nullptr : rounded[i]}; }
  BackwardWeights slice(std::size_t first, std::size_t count = std::dynamic_extent) const {
    return {pointers.subspan(first, count), rounded.empty() ? rounded : rounded.subspan(first, count)};
  }
};
// kStore overwrites, kAdd accumulates (the later micro-batches of a mini-batch).
enum class GradientMode { kStore, kAdd };
struct WeightGradients {
  std::span<float* const> pointers;
  GradientMode mode = GradientMode::kStore;
  float* operator[](std::size_t i) const { return pointers[i]; }
};

struct ForwardContext {
  Stream& stream;
  ForwardWeights weights;
  std::span<float* const> states;
  ConstTensor input;
  Tensor output;
  std::byte* stash = nullptr;
  std::byte* workspace = nullptr;
  Mode mode = Mode::kTraining;
  RandomKey random;
};

// input and output are null unless the plan's `needs` asks for them. backward_input always runs before
// backward_weights of the same mini-batch, perhaps long before; input_gradient is not there where nobody
// reads it.
struct BackwardContext {
  Stream& stream;
  BackwardWeights weights;
  WeightGradients gradients;
  ConstTensor input;
  ConstTensor output;
  ConstTensor output_gradient;
  Tensor input_gradient;
  std::byte* stash = nullptr;
  std::byte* workspace = nullptr;
  RandomKey random;
};

class Layer {
 public:
  virtual ~Layer() = default;

  // A short type for people: "conv2d 3x3, 16 -> 32".
  virtual std::string describe() const = 0;
  virtual std::vector<Parameter> parameters() const { return {}; }
  virtual std::vector<State> states() const { return {}; }

  // The types that its tensors will have: kBf16 only where `offered` has it. Called before plan(), after
  // set_precision(), until all neighbours agree; the last answer holds, where there was no call fp32.
  virtual ElementTypes choose_types(ElementTypes offered) {
    static_cast<void>(offered);
    return {};
  }
  // Throws std::invalid_argument, naming the layer and both shapes, when the input does not fit.
  virtual LayerPlan plan(Device device, int threads, const Shape& input) = 0;

  virtual void forward(const ForwardContext& context) const = 0;
  // Gradient of the loss with respect to the input.
  virtual void backward_input(const BackwardContext& context) const = 0;
  // Gradient with respect to the parameters. Layers without parameters need not write it.
  virtual void backward_weights(const BackwardContext& context) const { static_cast<void>(context); }
  // Both, input gradient first. Composites that keep no gradients between the two halves (joined mode) offer
  // only this.
  virtual void backward(const BackwardContext& context) const {
    backward_input(context);
    backward_weights(context);
  }
  // For layers made of layers: how their backward will be called. The layer around calls it before plan().
  virtual void set_backward_split(BackwardSplit split) { static_cast<void>(split); }
  // How the layer's products and convolutions are computed. Called before plan(), likewise.
  virtual void set_precision(MatrixPrecision precision) { static_cast<void>(precision); }
  // Called before plan(), likewise.
  virtual void set_row_kernels(RowKernels kernels) { static_cast<void>(kernels); }
  // Layers inside this one advance the model-wide layer index by more than 1.
  virtual int random_layers() const { return 1; }
};

using LayerPtr = std::unique_ptr<Layer>;

// A layer and its name in the model ("layer1.0"); parameter names are name + "." + parameter.
struct NamedLayer {
  std::string name;
  LayerPtr layer;
};

// The loss is the last stage's tail: the mean over the whole mini-batch of a loss for each row of the logits.
// A row is a record, or one position of a record.
struct LossContext {
  Stream& stream;
  ConstTensor logits;          // {N, classes} or {N, T, classes}
  const std::int32_t* labels;  // one a row; a negative one marks padding, which counts for nothing
  Tensor logits_gradient;      // d(sum of the rows' losses * scale)/d(logits); data null in evaluation
  double* loss_sum;            // one value: sum of the rows' losses, overwritten
  std::int32_t* correct;       // one value: number of rows whose largest logit is the label
  float scale = 1;             // 1 / (rows of the whole mini-batch)
  std::byte* workspace = nullptr;
};

class Loss {
 public:
  virtual ~Loss() = default;
  virtual std::size_t workspace_bytes(const Shape& logits) const = 0;
  virtual void run(const LossContext& context) const = 0;
};

}  // namespace pipeoptim
