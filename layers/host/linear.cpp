// Linear maps on the host. Forward is oneDNN's matmul primitive, which reads the weights as they lie in the
// arena and adds bias and activation while the product is in registers: dnnl_sgemm with a transposed factor
// gives a second thread nothing to do where rows are few (half the speed at 128 x 1024 x 1024). The gradients
// are products that dnnl_sgemm runs well. With factors in bf16 all three are matmul primitives.
#include <algorithm>
#include <optional>
#include <string>

#include "kernels/runtime/error.h"
#include "layers/backend.h"
#include "layers/bias.h"
#include "layers/host/dnnl_versions.h"
#include "layers/host/planning.h"
#include "layers/host/staged_primitive.h"
#include "layers/rounding.h"

namespace pipeoptim::host {
namespace {

using dnnl::memory;
using Role = StagedPrimitive::Role;
using Type = memory::data_type;

// Dense matrices, row by row, and their transposes.
memory::desc matrix(Type type, std::int64_t rows, std::int64_t columns) {
  return {{rows, columns}, type, memory::dims{columns, 1}};
}
memory::desc transposed(Type type, std::int64_t rows, std::int64_t columns) {
  return {{rows, columns}, type, memory::dims{1, rows}};
}
// Laid out as oneDNN likes it.
memory::desc any(Type type, std::int64_t rows, std::int64_t columns) {
  return {{rows, columns}, type, memory::format_tag::any};
}

// The forward product, with factors of a type. oneDNN's interface is not const-correct: inputs are only read.
class ForwardProduct {
 public:
  ForwardProduct(const dnnl::engine& engine, const LinearSpec& spec, Type factors) {
    const MatmulMemory memory{
        .input = matrix(factors, spec.rows, spec.in),
        .weights = transposed(factors, spec.in, spec.out),
        .bias = spec.bias == Bias::kYes ? matrix(Type::f32, 1, spec.out) : memory::desc(),
        .output = matrix(dnnl_type(spec.types.output), spec.rows, spec.out)};
    dnnl::post_ops epilogue;
    if (spec.activation == Activation::kRelu) append_relu(epilogue);
    const auto chosen = describe_matmul(engine, memory, epilogue);
    std::vector<StagedPrimitive::Operand> operands{
        {DNNL_ARG_SRC, memory.input, memory.input, Role::kInput},
        {DNNL_ARG_WEIGHTS, memory.weights, memory.weights, Role::kInput},
        {DNNL_ARG_DST, memory.output, memory.output, Role::kOutput}};
    if (spec.bias == Bias::kYes) operands.push_back({DNNL_ARG_BIAS, memory.bias, memory.bias, Role::kInput});
    primitive_.emplace(engine, dnnl::matmul(chosen), chosen.scratchpad_desc(), operands);
  }

  std::size_t workspace_bytes() const { return primitive_->workspace_bytes(); }

  void run(Stream& stream, const void* input, const void* weights, const LinearForward& operands,
           std::byte* workspace) {
    stream.submit([primitive = &*primitive_, input, weights, operands, workspace] {
      void* const pointers[] = {const_cast<void*>(input), const_cast<void*>(weights),
                                operands.output.memory(), const_cast<float*>(operands.bias)};
      primitive->execute(pointers, workspace);
    });
  }

 private:
  std::optional<StagedPrimitive> primitive_;
};

class HostLinear final : public LinearPlan {
 public:
  HostLinear(int threads, const LinearSpec& spec) : threads_(threads), spec_(spec) {
    const PlanningThreads guard(threads);
    forward_.emplace(dnnl::engine(dnnl::engine::kind::cpu, 0), spec, Type::f32);
  }

  std::size_t workspace_bytes() const override {
    const bool sums = spec_.bias == Bias::kYes;
    return std::max(forward_->workspace_bytes(),
                    sums ? bias_gradient_workspace({spec_.rows, spec_.out}) : std::size_t{0});
  }

  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    forward_->run(stream, fp32_values(operands.input), fp32_values(operands.weights), operands, workspace);
  }

  void backward_input(Stream& stream, const LinearBackwardInput& operands, std::byte*) const override {
    gemm(stream, {.rows = spec_.rows,
                  .columns = spec_.in,
                  .inner = spec_.out,
                  .a = fp32_values(operands.output_gradient),
                  .b = fp32_values(operands.weights),
                  .c = fp32_values(operands.input_gradient)});
  }

  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override {
    gemm(stream, {.transpose_a = Transpose::kYes,
                  .rows = spec_.out,
                  .columns = spec_.in,
                  .inner = spec_.rows,
                  .a = fp32_values(operands.output_gradient),
                  .b = fp32_values(operands.input),
                  .c = operands.weight_gradient,
                  .beta = operands.mode == GradientMode::kAdd ? 1.0F : 0.0F});
    if (operands.bias_gradient == nullptr) return;
    sum_bias_gradient(stream, {spec_.rows, spec_.out}, operands.output_gradient, operands.bias_gradient,
                      operands.mode, workspace);
  }

 private:
  int threads_;
  LinearSpec spec_;
  // Addresses of operands change from call to call, in the order of the one stream that uses the plan.
  mutable std::optional<ForwardProduct> forward_;
};

// A product of two bf16 matrices, stored in either type or added to fp32.
class Bf16Product {
 public:
  // `a` and `b` as they lie, and as oneDNN may have them.
  struct Factors {
    memory::desc a, b, asked_a, asked_b;
  };

  Bf16Product(const dnnl::engine& engine, const Factors& factors, const memory::desc& product,
              GradientMode mode) {
    dnnl::post_ops epilogue;
    if (mode == GradientMode::kAdd) epilogue.append_sum(1.0F);
    const auto chosen =
        describe_matmul(engine, {factors.asked_a, factors.asked_b, memory::desc(), product}, epilogue);
    primitive_.emplace(engine, dnnl::matmul(chosen), chosen.scratchpad_desc(),
                       std::vector<StagedPrimitive::Operand>{
                           {DNNL_ARG_SRC, factors.a, chosen.src_desc(), Role::kInput},
                           {DNNL_ARG_WEIGHTS, factors.b, chosen.weights_desc(), Role::kInput},
                           {DNNL_ARG_DST, product, product, Role::kOutput}});
  }

  std::size_t workspace_bytes() const { return primitive_->workspace_bytes(); }

  void run(Stream& stream, const Bf16* a, const Bf16* b, void* product, std::byte* workspace) {
    stream.submit([primitive = &*primitive_, a, b, product, workspace] {
      void* const pointers[] = {const_cast<Bf16*>(a), const_cast<Bf16*>(b), product};
      primitive->execute(pointers, workspace);
    });
  }

 private:
  std::optional<StagedPrimitive> primitive_;
};

// Factors that are given in fp32 are rounded into the workspace, the products' own memory lies behind them.
// The bias gradient is the sum of what is given.
class HostBf16Linear final : public LinearPlan {
 public:
  HostBf16Linear(int threads, const LinearSpec& spec)
      : threads_(threads),
        spec_(spec),
        rounded_(
            {.input = spec.rows * spec.in, .weights = spec.in * spec.out, .output = spec.rows * spec.out},
            spec.types, workspace_) {
    require_bf16();
    const PlanningThreads guard(threads);
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const std::int64_t rows = spec.rows, in = spec.in, out = spec.out;
    forward_.emplace(engine, spec, Type::bf16);
    const memory::desc gradient = matrix(Type::bf16, rows, out), weights = matrix(Type::bf16, out, in);
    input_.emplace(engine, Bf16Product::Factors{gradient, weights, gradient, weights},
                   matrix(dnnl_type(spec.types.input), rows, in), GradientMode::kStore);
    // The transpose of what lies row by row: oneDNN multiplies its own layouts up to twice as fast (768 x
    // 2048 x 256), a reorder costs a tenth of that.
    const Bf16Product::Factors of_weights{transposed(Type::bf16, out, rows), matrix(Type::bf16, rows, in),
                                          any(Type::bf16, out, rows), any(Type::bf16, rows, in)};
    store_.emplace(engine, of_weights, matrix(Type::f32, out, in), GradientMode::kStore);
    add_.emplace(engine, of_weights, matrix(Type::f32, out, in), GradientMode::kAdd);
    behind_ = workspace_.reserve(
        std::max({forward_->workspace_bytes(), input_->workspace_bytes(), store_->workspace_bytes(),
                  add_->workspace_bytes(), bias_gradient_workspace({rows, out})}));
  }

  std::size_t workspace_bytes() const override { return workspace_.bytes(); }

  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    const Bf16* const input = rounded_.input(stream, operands.input, workspace);
    const Bf16* const weights = rounded_.weights(stream, operands.weights, workspace);
    forward_->run(stream, input, weights, operands, workspace + behind_);
  }

  void backward_input(Stream& stream, const LinearBackwardInput& operands,
                      std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    const Bf16* const gradient =
        rounded_.output_gradient(stream, operands.output_gradient, Workspace::kUndefined, workspace);
    const Bf16* const weights = rounded_.weights(stream, operands.weights, workspace);
    input_->run(stream, gradient, weights, operands.input_gradient.memory(), workspace + behind_);
  }

  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    const Bf16* const gradient =
        rounded_.output_gradient(stream, operands.output_gradient, operands.workspace, workspace);
    const Bf16* const input = rounded_.input(stream, operands.input, workspace);
    auto& product = operands.mode == GradientMode::kAdd ? add_ : store_;
    product->run(stream, gradient, input, operands.weight_gradient, workspace + behind_);
    if (operands.bias_gradient == nullptr) return;
    sum_bias_gradient(stream, {spec_.rows, spec_.out}, operands.output_gradient, operands.bias_gradient,
                      operands.mode, workspace + behind_);
  }

 private:
  int threads_;
  LinearSpec spec_;
  ArenaPlan workspace_;
  RoundedFactors rounded_;
  std::size_t behind_ = 0;  // offset of the products' memory
  mutable std::optional<ForwardProduct> forward_;
  mutable std::optional<Bf16Product> input_, store_, add_;
};

}  // namespace
}  // namespace pipeoptim::host

namespace pipeoptim::detail {

std::unique_ptr<LinearPlan> make_host_linear(int threads, const LinearSpec& spec) {
  try {
    if (spec.precision == MatrixPrecision::kBf16) {
      return std::make_unique<host::HostBf16Linear>(threads, spec);
    }
    return std::make_unique<host::HostLinear>(threads, spec);
  } catch (const dnnl::error& error) {
    throw DeviceError("oneDNN " + describe(spec), std::string(error.what()) + ", status " +
                                                      std::to_string(static_cast<int>(error.status)));
  }
}

}  // namespace pipeoptim::detail
