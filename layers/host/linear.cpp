// Linear maps on the host. Forward is oneDNN's matmul primitive, which reads the weights as they lie in the
// arena and adds bias and activation while the product is in registers: dnnl_sgemm with a transposed factor
// gives a second thread nothing to do where rows are few (half the speed at 128 x 1024 x 1024). The gradients
// are products that dnnl_sgemm runs well.
#include <algorithm>
#include <optional>
#include <string>

#include "kernels/runtime/error.h"
#include "layers/backend.h"
#include "layers/bias.h"
#include "layers/host/dnnl_versions.h"
#include "layers/host/planning.h"
#include "layers/host/staged_primitive.h"

namespace pipeoptim::host {
namespace {

using dnnl::memory;
using Role = StagedPrimitive::Role;

memory::desc matrix(std::int64_t rows, std::int64_t columns, std::int64_t row_step,
                    std::int64_t column_step) {
  return {{rows, columns}, memory::data_type::f32, memory::dims{row_step, column_step}};
}

class HostLinear final : public LinearPlan {
 public:
  HostLinear(int threads, const LinearSpec& spec) : threads_(threads), spec_(spec) {
    const PlanningThreads guard(threads);
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    const MatmulMemory memory{
        .input = matrix(spec.rows, spec.in, spec.input_step, 1),
        .weights = matrix(spec.in, spec.out, 1, spec.in),
        .bias = spec.bias == Bias::kYes ? matrix(1, spec.out, spec.out, 1) : memory::desc(),
        .output = matrix(spec.rows, spec.out, spec.output_step, 1)};
    dnnl::post_ops epilogue;
    if (spec.output == GradientMode::kAdd) epilogue.append_sum(1.0F);
    if (spec.activation == Activation::kRelu) append_relu(epilogue);
    const auto chosen = describe_matmul(engine, memory, epilogue);
    std::vector<StagedPrimitive::Operand> operands{
        {DNNL_ARG_SRC, memory.input, memory.input, Role::kInput},
        {DNNL_ARG_WEIGHTS, memory.weights, memory.weights, Role::kInput},
        {DNNL_ARG_DST, memory.output, memory.output, Role::kOutput}};
    if (spec.bias == Bias::kYes) operands.push_back({DNNL_ARG_BIAS, memory.bias, memory.bias, Role::kInput});
    forward_.emplace(engine, dnnl::matmul(chosen), chosen.scratchpad_desc(), operands);
  }

  std::size_t workspace_bytes() const override {
    const bool sums = spec_.bias == Bias::kYes;
    return std::max(forward_->workspace_bytes(),
                    sums ? bias_gradient_workspace({spec_.rows, spec_.out}) : std::size_t{0});
  }

  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    stream.submit([primitive = &*forward_, operands, workspace] {
      // oneDNN's interface is not const-correct: inputs are only read.
      float* const pointers[] = {const_cast<float*>(operands.input), const_cast<float*>(operands.weights),
                                 operands.output, const_cast<float*>(operands.bias)};
      primitive->execute(pointers, workspace);
    });
  }

  void backward_input(Stream& stream, const LinearBackwardInput& operands, std::byte*) const override {
    gemm(stream, {.rows = spec_.rows,
                  .columns = spec_.in,
                  .inner = spec_.out,
                  .a = operands.output_gradient,
                  .b = operands.weights,
                  .c = operands.input_gradient,
                  .leading_a = spec_.output_step,
                  .leading_c = spec_.input_step});
  }

  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override {
    gemm(stream, {.transpose_a = Transpose::kYes,
                  .rows = spec_.out,
                  .columns = spec_.in,
                  .inner = spec_.rows,
                  .a = operands.output_gradient,
                  .b = operands.input,
                  .c = operands.weight_gradient,
                  .leading_a = spec_.output_step,
                  .leading_b = spec_.input_step,
                  .beta = operands.mode == GradientMode::kAdd ? 1.0F : 0.0F});
    if (operands.bias_gradient == nullptr) return;
    sum_bias_gradient(stream, {spec_.rows, spec_.out}, operands.output_gradient, operands.bias_gradient,
                      operands.mode, workspace);
  }

 private:
  int threads_;
  LinearSpec spec_;
  // Addresses of operands change from call to call, in the order of the one stream that uses the plan.
  mutable std::optional<StagedPrimitive> forward_;
};

}  // namespace
}  // namespace pipeoptim::host

namespace pipeoptim::detail {

std::unique_ptr<LinearPlan> make_host_linear(int threads, const LinearSpec& spec) {
  try {
    return std::make_unique<host::HostLinear>(threads, spec);
  } catch (const dnnl::error& error) {
    throw DeviceError("oneDNN " + describe(spec), std::string(error.what()) + ", status " +
                                                      std::to_string(static_cast<int>(error.status)));
  }
}

}  // namespace pipeoptim::detail
