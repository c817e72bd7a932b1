// Linear maps on CUDA: cuBLASLt, with bias and activation in forward's epilogue and the bias gradient in that
// of the weights' gradient. With kBf16 factors are bf16, as are results that are stored in it; the library
// wants the bias of those in bf16, too. The bias gradient is then a sum of what is given, by a kernel of
// ours.
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
#include "layers/rounding.h"

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

// What a product may count on: matrices are aligned to 16 bytes, and its loads are no wider.
constexpr std::uint32_t kMostAlignment = 16;

// A dense matrix in its types: rows of ours are columns.
struct Matrix {
  std::int64_t rows;
  std::int64_t columns;
  cudaDataType_t type;

  Layout layout() const {
    cublasLtMatrixLayout_t layout = nullptr;
    check(cublasLtMatrixLayoutCreate(&layout, type, static_cast<std::uint64_t>(rows),
                                     static_cast<std::uint64_t>(columns), rows),
          "cublasLtMatrixLayoutCreate");
    return Layout(layout);
  }
  // How far the starts of all its columns are sure to be aligned, in bytes.
  std::uint32_t alignment() const {
    const auto bytes = static_cast<std::uint64_t>(rows) * (type == CUDA_R_32F ? sizeof(float) : sizeof(Bf16));
    return std::min(kMostAlignment, std::uint32_t{1} << std::countr_zero(bytes));
  }
};

// One product, d = op(a) op(b) + beta d with an epilogue, and the algorithm that runs it.
class Product {
 public:
  struct Operands {
    Matrix a;
    cublasOperation_t operation_a;
    Matrix b;
    cublasOperation_t operation_b;
    Matrix d;
  };

  Product(cublasLtHandle_t handle, const std::string& what, cublasComputeType_t compute,
          const Operands& operands, cublasLtEpilogue_t epilogue)
      : a_(operands.a.layout()), b_(operands.b.layout()), d_(operands.d.layout()) {
    cublasLtMatmulDesc_t descriptor = nullptr;
    check(cublasLtMatmulDescCreate(&descriptor, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
    descriptor_.reset(descriptor);
    set(descriptor_, CUBLASLT_MATMUL_DESC_TRANSA, operands.operation_a);
    set(descriptor_, CUBLASLT_MATMUL_DESC_TRANSB, operands.operation_b);
    set(descriptor_, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    choose(handle, what, operands);
  }

  std::size_t workspace_bytes() const { return chosen_.workspaceSize; }

  // The bias, or where its gradient goes, is of d's type, and null where the epilogue has none.
  void run(cublasLtHandle_t handle, const Stream& stream, const void* a, const void* b, void* d,
           GradientMode mode, const void* bias, std::byte* workspace) const {
    const float alpha = 1, beta = mode == GradientMode::kAdd ? 1.0F : 0.0F;
    if (bias != nullptr) set(descriptor_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    check(cublasLtMatmul(handle, descriptor_.get(), &alpha, a, a_.get(), b, b_.get(), &beta, d, d_.get(), d,
                         d_.get(), &chosen_.algo, workspace, chosen_.workspaceSize,
                         static_cast<cudaStream_t>(stream.native())),
          "cublasLtMatmul");
  }

 private:
  void choose(cublasLtHandle_t handle, const std::string& what, const Operands& operands) {
    cublasLtMatmulPreference_t created = nullptr;
    check(cublasLtMatmulPreferenceCreate(&created), "cublasLtMatmulPreferenceCreate");
    const Preference preference(created);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceLimit);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, operands.a.alignment());
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, operands.b.alignment());
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, operands.d.alignment());
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, operands.d.alignment());
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

cudaDataType_t cuda_type(ElementType type) { return type == ElementType::kBf16 ? CUDA_R_16BF : CUDA_R_32F; }

// The matrices of a linear map, as factors and as results.
class Matrices {
 public:
  explicit Matrices(const LinearSpec& spec)
      : spec_(spec), factor_(spec.precision == MatrixPrecision::kBf16 ? CUDA_R_16BF : CUDA_R_32F) {}

  Product forward(cublasLtHandle_t handle) const {
    return make(
        handle, " forward",
        {weights(factor_), CUBLAS_OP_T, input(factor_), CUBLAS_OP_N, output(cuda_type(spec_.types.output))},
        forward_epilogue(spec_));
  }
  Product backward_input(cublasLtHandle_t handle) const {
    return make(
        handle, " backward input",
        {weights(factor_), CUBLAS_OP_N, output(factor_), CUBLAS_OP_N, input(cuda_type(spec_.types.input))},
        CUBLASLT_EPILOGUE_DEFAULT);
  }
  Product backward_weights(cublasLtHandle_t handle, cublasLtEpilogue_t epilogue) const {
    return make(handle, " backward weights",
                {input(factor_), CUBLAS_OP_N, output(factor_), CUBLAS_OP_T, weights(CUDA_R_32F)}, epilogue);
  }

 private:
  Matrix input(cudaDataType_t type) const { return {spec_.in, spec_.rows, type}; }
  Matrix weights(cudaDataType_t type) const { return {spec_.in, spec_.out, type}; }
  Matrix output(cudaDataType_t type) const { return {spec_.out, spec_.rows, type}; }

  Product make(cublasLtHandle_t handle, const char* direction, const Product::Operands& operands,
               cublasLtEpilogue_t epilogue) const {
    const bool fp32 = factor_ == CUDA_R_32F;
    return {handle, describe(spec_) + direction, fp32 ? compute_type(spec_.precision) : CUBLAS_COMPUTE_32F,
            operands, epilogue};
  }

  LinearSpec spec_;
  cudaDataType_t factor_;
};

class CudaLinear final : public LinearPlan {
 public:
  explicit CudaLinear(const LinearSpec& spec)
      : spec_(spec),
        sums_bias_(spec.bias == Bias::kNo                     ? BiasSum::kNone
                   : spec.precision == MatrixPrecision::kBf16 ? BiasSum::kOfKernel
                                                              : BiasSum::kOfProduct),
        handle_(make_handle()),
        forward_(Matrices(spec).forward(handle_.get())),
        input_(Matrices(spec).backward_input(handle_.get())),
        weights_(Matrices(spec).backward_weights(handle_.get(), sums_bias_ == BiasSum::kOfProduct
                                                                    ? CUBLASLT_EPILOGUE_BGRADB
                                                                    : CUBLASLT_EPILOGUE_DEFAULT)),
        factors_(
            spec.precision,
            {.input = spec.rows * spec.in, .weights = spec.in * spec.out, .output = spec.rows * spec.out},
            spec.types, workspace_),
        behind_(workspace_.reserve(std::max(
            {forward_.workspace_bytes(), input_.workspace_bytes(), weights_.workspace_bytes(),
             sums_bias_ == BiasSum::kOfKernel ? bias_gradient_workspace({spec.rows, spec.out}) : 0}))),
        staged_bias_(workspace_.reserve(
            sums_bias_ == BiasSum::kOfProduct || rounds_bias() ? float_bytes(spec.out) : std::size_t{0})) {}

  std::size_t workspace_bytes() const override { return workspace_.bytes(); }

  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    const void* const input = factors_.input(stream, operands.input, workspace);
    const void* const weights = factors_.weights(stream, operands.weights, workspace);
    forward_.run(handle_.get(), stream, weights, input, operands.output.memory(), GradientMode::kStore,
                 bias_of(stream, operands.bias, workspace), workspace + behind_);
  }

  void backward_input(Stream& stream, const LinearBackwardInput& operands,
                      std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    const void* const gradient =
        factors_.output_gradient(stream, operands.output_gradient, Workspace::kUndefined, workspace);
    const void* const weights = factors_.weights(stream, operands.weights, workspace);
    input_.run(handle_.get(), stream, weights, gradient, operands.input_gradient.memory(),
               GradientMode::kStore, nullptr, workspace + behind_);
  }

  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    const void* const gradient =
        factors_.output_gradient(stream, operands.output_gradient, operands.workspace, workspace);
    const void* const input = factors_.input(stream, operands.input, workspace);
    // The epilogue always overwrites the bias gradient.
    const bool adds = sums_bias_ == BiasSum::kOfProduct && operands.mode == GradientMode::kAdd;
    float* sums = nullptr;
    if (sums_bias_ == BiasSum::kOfProduct) {
      sums = adds ? floats_at(workspace, staged_bias_) : operands.bias_gradient;
    }
    weights_.run(handle_.get(), stream, input, gradient, operands.weight_gradient, operands.mode, sums,
                 workspace + behind_);
    if (adds) accumulate(stream, spec_.out, sums, operands.bias_gradient);
    if (sums_bias_ == BiasSum::kOfKernel) {
      sum_bias_gradient(stream, {spec_.rows, spec_.out}, operands.output_gradient, operands.bias_gradient,
                        operands.mode, workspace + behind_);
    }
  }

 private:
  // Whether forward's epilogue wants a bias in bf16.
  bool rounds_bias() const { return spec_.bias == Bias::kYes && spec_.types.output == ElementType::kBf16; }
  const void* bias_of(Stream& stream, const float* bias, std::byte* workspace) const {
    if (!rounds_bias()) return bias;
    auto* const rounded = reinterpret_cast<Bf16*>(workspace + staged_bias_);
    round_to_bf16(stream, spec_.out, bias, rounded);
    return rounded;
  }

  // Who sums the bias gradient: in bf16 a kernel.
  enum class BiasSum { kNone, kOfProduct, kOfKernel };

  LinearSpec spec_;
  BiasSum sums_bias_;
  Handle handle_;
  Product forward_, input_, weights_;
  ArenaPlan workspace_;
  PlanFactors factors_;
  // Offsets: of the products' memory, of a bias gradient that is to be added or of a bias in bf16.
  std::size_t behind_, staged_bias_;
};

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

std::unique_ptr<LinearPlan> make_cuda_linear(Device device, const LinearSpec& spec) {
  const cuda::DeviceGuard current(device);
  return std::make_unique<cuda::CudaLinear>(spec);
}

}  // namespace pipeoptim::detail
