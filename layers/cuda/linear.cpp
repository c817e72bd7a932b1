// Linear maps on CUDA: cuBLASLt, with bias and activation in forward's epilogue and the bias gradient in that
// of the weights' gradient.
//
// cuBLASLt is column-major and sees our matrices transposed: x is in x rows, W is in x out, y is out x rows.
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include "kernels/runtime/buffer.h"
#include "layers/accumulate.h"
#include "layers/backend.h"
#include "layers/cuda/handles.h"

namespace pipeoptim::cuda {
namespace {

constexpr std::size_t kWorkspaceLimit = std::size_t{32} << 20;  // what the library's authors advise for 9.0

void check(cublasStatus_t status, const std::string& call,
           std::source_location where = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS) throw DeviceError(call, cublasGetStatusString(status), where);
}

using Handle = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Descriptor = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

template <typename T>
void set(const Descriptor& descriptor, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(descriptor.get(), attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
}

Handle make_handle() {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle), "cublasLtCreate");
  return Handle(handle);
}

Layout make_layout(std::int64_t rows, std::int64_t columns, std::int64_t leading) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, CUDA_R_32F, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(columns), leading),
        "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

// How far the starts of rows are sure to be aligned, in bytes, where the first one is to kAlignment or is
// itself a row of such a matrix.
std::uint32_t alignment_of(std::int64_t step) {
  const auto bytes = static_cast<std::uint64_t>(step) * sizeof(float);
  return std::min(static_cast<std::uint32_t>(kAlignment), std::uint32_t{1} << std::countr_zero(bytes));
}

// One product, d = op(a) op(b) + beta d with an epilogue, and the algorithm that runs it.
class Product {
 public:
  struct Operand {
    Layout layout;
    std::int64_t step;  // between the starts of two of its columns
    cublasOperation_t operation = CUBLAS_OP_N;
  };

  Product(cublasLtHandle_t handle, const std::string& what, MatrixPrecision precision, Operand a, Operand b,
          Operand d, cublasLtEpilogue_t epilogue)
      : a_(std::move(a.layout)), b_(std::move(b.layout)), d_(std::move(d.layout)) {
    cublasLtMatmulDesc_t descriptor = nullptr;
    check(cublasLtMatmulDescCreate(&descriptor, compute_type(precision), CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    descriptor_.reset(descriptor);
    set(descriptor_, CUBLASLT_MATMUL_DESC_TRANSA, a.operation);
    set(descriptor_, CUBLASLT_MATMUL_DESC_TRANSB, b.operation);
    set(descriptor_, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    choose(handle, what, {alignment_of(a.step), alignment_of(b.step), alignment_of(d.step)});
  }

  std::size_t workspace_bytes() const { return chosen_.workspaceSize; }

  // The bias, or where its gradient goes, is null where the epilogue has none.
  void run(cublasLtHandle_t handle, const Stream& stream, const float* a, const float* b, float* d,
           GradientMode mode, const float* bias, std::byte* workspace) const {
    const float alpha = 1, beta = mode == GradientMode::kAdd ? 1.0F : 0.0F;
    if (bias != nullptr) set(descriptor_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    check(cublasLtMatmul(handle, descriptor_.get(), &alpha, a, a_.get(), b, b_.get(), &beta, d, d_.get(), d,
                         d_.get(), &chosen_.algo, workspace, chosen_.workspaceSize,
                         static_cast<cudaStream_t>(stream.native())),
          "cublasLtMatmul");
  }

 private:
  struct Alignments {
    std::uint32_t a, b, d;
  };

  void choose(cublasLtHandle_t handle, const std::string& what, const Alignments& alignments) {
    cublasLtMatmulPreference_t created = nullptr;
    check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
    const Preference preference(created);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceLimit);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments.a);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments.b);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments.d);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments.d);
    int found = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle, descriptor_.get(), a_.get(), b_.get(), d_.get(), d_.get(),
                                         preference.get(), 1, &chosen_, &found),
          "cublasLtMatmulAlgoGetHeuristic, " + what);
    if (found == 0) throw DeviceError("cublasLtMatmulAlgoGetHeuristic, " + what, "no algorithm");
  }

  Descriptor descriptor_;
  Layout a_, b_, d_;
  cublasLtMatmulHeuristicResult_t chosen_{};
};

cublasLtEpilogue_t forward_epilogue(const LinearSpec& spec) {
  if (spec.bias == Bias::kYes) {
    return spec.activation == Activation::kRelu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
  }
  return spec.activation == Activation::kRelu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_DEFAULT;
}

class CudaLinear final : public LinearPlan {
 public:
  explicit CudaLinear(const LinearSpec& spec)
      : spec_(spec),
        handle_(make_handle()),
        forward_(handle_.get(), describe(spec) + " forward", spec.precision, weights(CUBLAS_OP_T), input(),
                 output(), forward_epilogue(spec)),
        input_(handle_.get(), describe(spec) + " backward input", spec.precision, weights(CUBLAS_OP_N),
               output(), input(), CUBLASLT_EPILOGUE_DEFAULT),
        weights_(handle_.get(), describe(spec) + " backward weights", spec.precision, input(),
                 output(CUBLAS_OP_T), weights(CUBLAS_OP_N),
                 spec.bias == Bias::kYes ? CUBLASLT_EPILOGUE_BGRADB : CUBLASLT_EPILOGUE_DEFAULT),
        product_workspace_(align_up(
            std::max({forward_.workspace_bytes(), input_.workspace_bytes(), weights_.workspace_bytes()}))) {}

  // Behind the products' own: a bias gradient that is to be added.
  std::size_t workspace_bytes() const override {
    return product_workspace_ +
           (spec_.bias == Bias::kYes ? static_cast<std::size_t>(spec_.out) * sizeof(float) : 0);
  }

  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    forward_.run(handle_.get(), stream, operands.weights, operands.input, operands.output, spec_.output,
                 operands.bias, workspace);
  }

  void backward_input(Stream& stream, const LinearBackwardInput& operands,
                      std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    input_.run(handle_.get(), stream, operands.weights, operands.output_gradient, operands.input_gradient,
               GradientMode::kStore, nullptr, workspace);
  }

  // The epilogue always overwrites the bias gradient.
  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    const bool adds = operands.bias_gradient != nullptr && operands.mode == GradientMode::kAdd;
    float* const sums =
        adds ? reinterpret_cast<float*>(workspace + product_workspace_) : operands.bias_gradient;
    weights_.run(handle_.get(), stream, operands.input, operands.output_gradient, operands.weight_gradient,
                 operands.mode, sums, workspace);
    if (adds) accumulate(stream, spec_.out, sums, operands.bias_gradient);
  }

 private:
  Product::Operand input() const {
    return {make_layout(spec_.in, spec_.rows, spec_.input_step), spec_.input_step};
  }
  Product::Operand output(cublasOperation_t operation = CUBLAS_OP_N) const {
    return {make_layout(spec_.out, spec_.rows, spec_.output_step), spec_.output_step, operation};
  }
  Product::Operand weights(cublasOperation_t operation) const {
    return {make_layout(spec_.in, spec_.out, spec_.in), spec_.in, operation};
  }

  LinearSpec spec_;
  Handle handle_;
  Product forward_, input_, weights_;
  std::size_t product_workspace_;
};

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

std::unique_ptr<LinearPlan> make_cuda_linear(Device device, const LinearSpec& spec) {
  const cuda::DeviceGuard current(device);
  return std::make_unique<cuda::CudaLinear>(spec);
}

}  // namespace pipeoptim::detail
