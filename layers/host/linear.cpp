// Linear maps on the host: oneDNN's matmul primitives, which take weights as they lie in the arena, add bias
// and activation while a product is in registers, and ask for their memory when they are planned. dnnl_sgemm
// is not faster, gives a second thread nothing to do where rows are few and a factor is transposed (half the
// speed at 128 x 1024 x 1024), and takes some 11 MiB a thread that nobody has planned. Many rows in bf16 are
// multiplied by tiles of our own.
#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/runtime/error.h"
#include "layers/backend.h"
#include "layers/bias.h"
#include "layers/host/dnnl_versions.h"
#include "layers/host/planning.h"
#include "layers/host/staged_primitive.h"
#include "layers/host/tiled_linear.h"
#include "layers/rounding.h"

namespace pipeoptim::host {
namespace {

using dnnl::memory;
using Role = StagedPrimitive::Role;
using Type = memory::data_type;

// A dense matrix, row by row, or the transpose of one.
struct Matrix {
  Type type;
  std::int64_t rows, columns;
  bool transposed = false;

  std::int64_t line() const { return transposed ? rows : columns; }
  // With room behind each line.
  memory::desc layout(std::int64_t room = 0) const {
    const std::int64_t step = line() + room;
    return {{rows, columns}, type, transposed ? memory::dims{1, step} : memory::dims{step, 1}};
  }
};

// Without AVX-512 oneDNN multiplies small matrices where they lie. Lines of a factor that is read across them
// then compete for the same places in the first-level cache if they are a multiple of 4 KiB apart, which
// halves the speed: such a factor is copied to lines with room behind them, where each value is used often.
std::int64_t room_behind_lines(const Matrix& factor, bool read_across, std::int64_t uses) {
  constexpr std::int64_t kFewestUses = 32, kRoom = 16;
  const bool competes = read_across && factor.type == Type::f32 && factor.line() % 1024 == 0;
  return competes && uses >= kFewestUses ? kRoom : 0;
}
bool multiplies_in_place(const dnnl::matmul::primitive_desc& chosen) {
  return std::string_view(chosen.impl_info_str()).starts_with("gemm");
}

// A product of two matrices, with all that its primitive needs. oneDNN's interface is not const-correct:
// factors and bias are only read.
class Product {
 public:
  struct Operands {
    Matrix a, b;
    std::int64_t bias;  // values; 0 where there is none
    Matrix product;
  };

  Product(const dnnl::engine& engine, const Operands& given, const dnnl::post_ops& epilogue) {
    const memory::desc a = given.a.layout(), b = given.b.layout(), product = given.product.layout();
    const memory::desc bias = given.bias > 0 ? Matrix{Type::f32, 1, given.bias}.layout() : memory::desc();
    auto chosen = describe_matmul(engine, {a, b, bias, product}, epilogue);
    memory::desc inner_a = a, inner_b = b;
    const std::int64_t room_a = room_behind_lines(given.a, given.a.transposed, given.product.columns);
    const std::int64_t room_b = room_behind_lines(given.b, !given.b.transposed, given.product.rows);
    if (room_a + room_b > 0 && multiplies_in_place(chosen)) {  // as it does with room, too
      inner_a = given.a.layout(room_a);
      inner_b = given.b.layout(room_b);
      chosen = describe_matmul(engine, {inner_a, inner_b, bias, product}, epilogue);
    }
    std::vector<StagedPrimitive::Operand> operands{{DNNL_ARG_SRC, a, inner_a, Role::kInput},
                                                   {DNNL_ARG_WEIGHTS, b, inner_b, Role::kInput},
                                                   {DNNL_ARG_DST, product, product, Role::kOutput}};
    if (given.bias > 0) operands.push_back({DNNL_ARG_BIAS, bias, bias, Role::kInput});
    primitive_.emplace(engine, dnnl::matmul(chosen), chosen.scratchpad_desc(), operands);
  }

  std::size_t workspace_bytes() const { return primitive_->workspace_bytes(); }

  void run(Stream& stream, const void* a, const void* b, const float* bias, void* product,
           std::byte* workspace) {
    stream.submit([primitive = &*primitive_, a, b, bias, product, workspace] {
      void* const pointers[] = {const_cast<void*>(a), const_cast<void*>(b), product,
                                const_cast<float*>(bias)};
      primitive->execute(pointers, workspace);
    });
  }

 private:
  std::optional<StagedPrimitive> primitive_;
};

// Factors of bf16 that are given in fp32 are rounded into the workspace, the products' own memory lies behind
// them. The bias gradient is the sum of what is given.
class HostLinear final : public LinearPlan {
 public:
  HostLinear(int threads, const LinearSpec& spec)
      : threads_(threads),
        spec_(spec),
        factors_(
            spec.precision,
            {.input = spec.rows * spec.in, .weights = spec.in * spec.out, .output = spec.rows * spec.out},
            spec.types, workspace_) {
    if (rounds()) require_bf16();
    const PlanningThreads guard(threads);
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    make_forward(engine);
    make_backward_input(engine);
    make_backward_weights(engine, GradientMode::kStore);
    make_backward_weights(engine, GradientMode::kAdd);
    behind_ = workspace_.reserve(
        std::max({forward_->workspace_bytes(), input_->workspace_bytes(), store_->workspace_bytes(),
                  add_->workspace_bytes(), bias_gradient_workspace({spec.rows, spec.out})}));
  }

  std::size_t workspace_bytes() const override { return workspace_.bytes(); }

  void forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    const void* const input = factors_.input(stream, operands.input, workspace);
    const void* const weights = factors_.weights(stream, operands.weights, workspace);
    forward_->run(stream, input, weights, operands.bias, operands.output.memory(), workspace + behind_);
  }

  void backward_input(Stream& stream, const LinearBackwardInput& operands,
                      std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    const void* const gradient =
        factors_.output_gradient(stream, operands.output_gradient, Workspace::kUndefined, workspace);
    const void* const weights = factors_.weights(stream, operands.weights, workspace);
    input_->run(stream, gradient, weights, nullptr, operands.input_gradient.memory(), workspace + behind_);
  }

  void backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                        std::byte* workspace) const override {
    require_threads("linear", threads_, stream);
    const void* const gradient =
        factors_.output_gradient(stream, operands.output_gradient, operands.workspace, workspace);
    const void* const input = factors_.input(stream, operands.input, workspace);
    auto& product = operands.mode == GradientMode::kAdd ? add_ : store_;
    product->run(stream, gradient, input, nullptr, operands.weight_gradient, workspace + behind_);
    if (operands.bias_gradient == nullptr) return;
    sum_bias_gradient(stream, {spec_.rows, spec_.out}, operands.output_gradient, operands.bias_gradient,
                      operands.mode, workspace + behind_);
  }

 private:
  bool rounds() const { return spec_.precision == MatrixPrecision::kBf16; }
  Type factor() const { return rounds() ? Type::bf16 : Type::f32; }

  void make_forward(const dnnl::engine& engine) {
    dnnl::post_ops epilogue;
    if (spec_.activation == Activation::kRelu) append_relu(epilogue);
    forward_.emplace(engine,
                     Product::Operands{.a = {factor(), spec_.rows, spec_.in},
                                       .b = {factor(), spec_.in, spec_.out, true},
                                       .bias = spec_.bias == Bias::kYes ? spec_.out : 0,
                                       .product = {dnnl_type(spec_.types.output), spec_.rows, spec_.out}},
                     epilogue);
  }

  void make_backward_input(const dnnl::engine& engine) {
    input_.emplace(engine,
                   Product::Operands{.a = {factor(), spec_.rows, spec_.out},
                                     .b = {factor(), spec_.out, spec_.in},
                                     .bias = 0,
                                     .product = {dnnl_type(spec_.types.input), spec_.rows, spec_.in}},
                   dnnl::post_ops());
  }

  // As the factors lie: in oneDNN's own layouts they are not multiplied faster.
  void make_backward_weights(const dnnl::engine& engine, GradientMode mode) {
    dnnl::post_ops epilogue;
    if (mode == GradientMode::kAdd) epilogue.append_sum(1.0F);
    (mode == GradientMode::kAdd ? add_ : store_)
        .emplace(engine,
                 Product::Operands{.a = {factor(), spec_.out, spec_.rows, true},
                                   .b = {factor(), spec_.rows, spec_.in},
                                   .bias = 0,
                                   .product = {Type::f32, spec_.out, spec_.in}},
                 epilogue);
  }

  int threads_;
  LinearSpec spec_;
  ArenaPlan workspace_;
  PlanFactors factors_;
  std::size_t behind_ = 0;  // offset of the products' memory
  // Addresses of operands change from call to call, in the order of the one stream that uses the plan.
  mutable std::optional<Product> forward_, input_, store_, add_;
};

}  // namespace
}  // namespace pipeoptim::host

namespace pipeoptim::detail {

std::unique_ptr<LinearPlan> make_host_linear(int threads, const LinearSpec& spec) {
  if (host::TiledLinear::handles(threads, spec)) return std::make_unique<host::TiledLinear>(threads, spec);
  try {
    return std::make_unique<host::HostLinear>(threads, spec);
  } catch (const dnnl::error& error) {
    throw DeviceError("oneDNN " + describe(spec), std::string(error.what()) + ", status " +
                                                      std::to_string(static_cast<int>(error.status)));
  }
}

}  // namespace pipeoptim::detail
