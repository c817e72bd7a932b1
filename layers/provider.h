// The vendor libraries behind one interface: matrix products, linear maps and convolutions. Everything runs
// in the order of a stream and on its device; pointers are that device's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/stream.h"
#include "layers/bias.h"
#include "layers/layer.h"
#include "layers/tensor.h"

namespace pipeoptim {

// How people name precisions: fp32, tf32, bf16. The second throws std::invalid_argument for other names.
const std::vector<std::string>& matrix_precision_names();
MatrixPrecision matrix_precision(const std::string& name);
// "own" and "cudnn", likewise.
const std::vector<std::string>& row_kernels_names();
RowKernels row_kernels(const std::string& name);

enum class Transpose { kNo, kYes };

// c = alpha * op(a) * op(b) + beta * c, all row-major: op(a) is rows x inner, op(b) is inner x columns. A
// leading extent is the distance between the starts of two stored rows; 0 stands for "densely stored". Where
// beta is 0, c is only written.
struct Gemm {
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t inner = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  float* c = nullptr;
  std::int64_t leading_a = 0;
  std::int64_t leading_b = 0;
  std::int64_t leading_c = 0;
  float alpha = 1;
  float beta = 0;
  MatrixPrecision precision = MatrixPrecision::kFp32;
};

// `count` products; product i reads and writes i steps (in elements) further. The whole is repeated `outer`
// times, the j-th time j outer steps further: the heads of a record, and the records.
struct GemmBatch {
  std::int64_t count = 0;
  std::int64_t step_a = 0;
  std::int64_t step_b = 0;
  std::int64_t step_c = 0;
  std::int64_t outer = 1;
  std::int64_t outer_step_a = 0;
  std::int64_t outer_step_b = 0;
  std::int64_t outer_step_c = 0;
  // Room for 3 count outer addresses in CUDA memory, which the call overwrites, or null. With it cuBLAS makes
  // all products in one call; without it has a step for either the inner or the outer ones.
  const float** addresses = nullptr;
};

// Both throw std::invalid_argument for negative extents, an inner extent of 0 and leading extents that are
// too small; without rows, columns or products they do nothing.
void gemm(Stream& stream, const Gemm& product);
void gemm_batched(Stream& stream, const Gemm& product, const GemmBatch& batch);
// On the host, within a task of a stream: at once, in the calling thread.
void gemm_here(const Gemm& product);

// y = activation(x W^T + b): rows of `in` features to rows of `out`; W is [out, in], dense.
struct LinearSpec {
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t out = 0;
  Bias bias = Bias::kNo;
  Activation activation = Activation::kNone;
  MatrixPrecision precision = MatrixPrecision::kFp32;
  ElementTypes types = {};  // of x and y, and of their gradients
};

// The types that tensors of products have of those that are offered: any in bf16, else fp32.
ElementTypes product_types(MatrixPrecision precision, ElementTypes offered);

// For messages: "linear 128 x 784 -> 1024".
std::string describe(const LinearSpec& spec);

// What a plan finds in the workspace of a weight gradient. A plan of kBf16 that is called for both gradients
// in a row may then round the output gradient once.
enum class Workspace {
  kUndefined,
  kOfInputGradient  // as the plan's call for the input gradient of the same output gradient left it
};

// For the weight gradient of a layer whose input gradient has just been asked for.
inline Workspace after_input_gradient(const BackwardContext& context) {
  return context.input_gradient.there() ? Workspace::kOfInputGradient : Workspace::kUndefined;
}

// Tensors are of the spec's types. Weights are given rounded only to plans of kBf16; the others throw
// std::invalid_argument.
struct LinearForward {
  Factor input = {};
  Factor weights = {};
  const float* bias = nullptr;  // null exactly where the spec has none
  Destination output = {};
};
// Output gradients are those in front of the activation.
struct LinearBackwardInput {
  Factor weights = {};
  Factor output_gradient = {};
  Destination input_gradient = {};
};
struct LinearBackwardWeights {
  Factor input = {};
  Factor output_gradient = {};
  float* weight_gradient = nullptr;
  float* bias_gradient = nullptr;  // null exactly where the spec has none
  GradientMode mode = GradientMode::kStore;
  Workspace workspace = Workspace::kUndefined;
};

// A prepared linear map with its bias and activation in the product's epilogue, and its gradients. A NaN in
// front of the activation may become 0. For its use the same holds as for a ConvolutionPlan.
class LinearPlan {
 public:
  virtual ~LinearPlan() = default;

  virtual std::size_t workspace_bytes() const = 0;
  virtual void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const = 0;
  virtual void backward_input(Stream& stream, const LinearBackwardInput& operands,
                              std::byte* workspace) const = 0;
  virtual void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                                std::byte* workspace) const = 0;
};

// Throws std::invalid_argument where extents are not positive or a tensor is in bf16 in another precision
// than that, DeviceError where the device does not multiply in the precision of the spec.
std::unique_ptr<LinearPlan> make_linear(Device device, int threads, const LinearSpec& spec);

// A convolution of an NHWC input with square kernels. Weights are stored [out, kh, kw, in/groups].
struct ConvolutionSpec {
  Shape input;
  std::int64_t out_channels = 0;
  std::int64_t kernel = 1;
  std::int64_t stride = 1;
  std::int64_t padding = 0;
  std::int64_t dilation = 1;
  std::int64_t groups = 1;
  bool bias = false;  // whether forward adds one value per output channel
  MatrixPrecision precision = MatrixPrecision::kFp32;
  ElementTypes types = {};  // of input and output, and of their gradients
};

// For messages: extents, geometry, groups.
std::string describe(const ConvolutionSpec& spec);

// Shape of the output, NHWC. Throws std::invalid_argument when the spec makes no sense for its input.
Shape convolution_output(const ConvolutionSpec& spec);
std::int64_t convolution_weights(const ConvolutionSpec& spec);
// Floating point operations of one direction.
double convolution_flops(const ConvolutionSpec& spec);

struct ConvolutionForward {
  Factor input = {};
  Factor weights = {};          // rounded only for plans of kBf16, as above
  const float* bias = nullptr;  // null exactly where the spec has none
  Destination output = {};
};
struct ConvolutionBackwardData {
  Factor weights = {};
  Factor output_gradient = {};
  Destination input_gradient = {};
};
struct ConvolutionBackwardWeights {
  Factor input = {};
  Factor output_gradient = {};
  float* weight_gradient = nullptr;
  GradientMode mode = GradientMode::kStore;
  Workspace workspace = Workspace::kUndefined;
};

// One prepared convolution. Running it allocates nothing; it is used by one stream at a time, different plans
// by different streams at once. It must outlive the work that it enqueued. Operands are aligned to 16 bytes.
// On the host the stream has the thread count that it was planned for.
class ConvolutionPlan {
 public:
  virtual ~ConvolutionPlan() = default;

  // Memory that each call below may overwrite, aligned to kAlignment; the largest need of the three.
  virtual std::size_t workspace_bytes() const = 0;
  virtual void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const = 0;
  virtual void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                             std::byte* workspace) const = 0;
  virtual void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                                std::byte* workspace) const = 0;
};

std::unique_ptr<ConvolutionPlan> make_convolution(Device device, int threads, const ConvolutionSpec& spec);

}  // namespace pipeoptim
