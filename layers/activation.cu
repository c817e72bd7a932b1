#include "kernels/runtime/launch.h"
#include "layers/activation.h"
#include "layers/elementwise.h"
#include "layers/functions.h"
#include "layers/host/gelu.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

// One functor a formula: value(x) and slope(saved), where `saved` is what backward reads, the output or the
// input.
struct ReluFormula {
  PO_HD static float value(float x) { return x < 0 ? 0 : x; }
  PO_HD static float slope(float y) { return y > 0 ? 1.0F : 0.0F; }
};
struct TanhFormula {
  PO_HD static float value(float x) { return tanh_of(x); }
  PO_HD static float slope(float y) { return 1.0F - y * y; }
};
struct SigmoidFormula {
  PO_HD static float value(float x) { return sigmoid_of(x); }
  PO_HD static float slope(float y) { return y * (1.0F - y); }
};
struct GeluFormula {
  PO_HD static float value(float x) { return x * normal_cdf(x); }
  PO_HD static float slope(float x) { return gelu_slope(x); }
};

struct GeluTanhFormula {
  static constexpr float kRoot = 0.79788456080286536F;  // sqrt(2 / pi)
  static constexpr float kCubic = 0.044715F;
  PO_HD static float value(float x) { return 0.5F * x * (1.0F + tanh_of(kRoot * (x + kCubic * x * x * x))); }
  PO_HD static float slope(float x) {
    const float t = tanh_of(kRoot * (x + kCubic * x * x * x));
    return 0.5F * (1.0F + t) + 0.5F * x * (1.0F - t * t) * kRoot * (1.0F + 3.0F * kCubic * x * x);
  }
};

template <typename Formula>
struct Value {
  PO_HD float operator()(float x) const { return Formula::value(x); }
};
template <typename Formula>
struct Gradient {
  PO_HD float operator()(float saved, float dy) const { return dy * Formula::slope(saved); }
};

struct Passed {
  PO_HD float operator()(float y, float dy) const { return y > 0 ? dy : 0.0F; }
};

LayerPlan element_plan(const Shape& input, Needs needs, bool in_place) {
  LayerPlan plan;
  plan.output = input;
  plan.needs = needs;
  plan.in_place = in_place;
  plan.bytes = 5.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}

template <typename Formula>
void run_forward(const ForwardContext& context) {
  with_type_of(context.input, [&]<typename T>() {
    for_each(context.stream, context.input.elements(),
             Map<Value<Formula>, T>{values_of<T>(context.input), values_of<T>(context.output)});
  });
}

template <typename Formula>
void run_backward(const BackwardContext& context, const ConstTensor& saved) {
  if (!context.input_gradient.there()) return;
  with_type_of(saved, [&]<typename T>() {
    for_each(context.stream, saved.elements(),
             Map2<Gradient<Formula>, T>{values_of<T>(saved), values_of<T>(context.output_gradient),
                                        values_of<T>(context.input_gradient)});
  });
}

}  // namespace

LayerPlan ReLU::plan(Device, int, const Shape& input) { return element_plan(input, Needs::kOutput, true); }
void ReLU::forward(const ForwardContext& context) const { run_forward<ReluFormula>(context); }
void ReLU::backward_input(const BackwardContext& context) const {
  run_backward<ReluFormula>(context, context.output);
}

LayerPlan Tanh::plan(Device, int, const Shape& input) { return element_plan(input, Needs::kOutput, true); }
void Tanh::forward(const ForwardContext& context) const { run_forward<TanhFormula>(context); }
void Tanh::backward_input(const BackwardContext& context) const {
  run_backward<TanhFormula>(context, context.output);
}

LayerPlan Sigmoid::plan(Device, int, const Shape& input) { return element_plan(input, Needs::kOutput, true); }
void Sigmoid::forward(const ForwardContext& context) const { run_forward<SigmoidFormula>(context); }
void Sigmoid::backward_input(const BackwardContext& context) const {
  run_backward<SigmoidFormula>(context, context.output);
}

LayerPlan GELU::plan(Device, int, const Shape& input) { return element_plan(input, Needs::kInput, false); }

bool GELU::vectorized(const Stream& stream, const ConstTensor& input) const {
  return form_ == GeluForm::kErf && stream.device().backend == Backend::kHost && input.rounded != nullptr &&
         host::handles_gelu(input.elements());
}

void GELU::forward(const ForwardContext& context) const {
  const ConstTensor& x = context.input;
  if (vectorized(context.stream, x)) {
    return host::gelu(context.stream, x.elements(), values_of<Bf16>(x), values_of<Bf16>(context.output));
  }
  if (form_ == GeluForm::kErf) return run_forward<GeluFormula>(context);
  run_forward<GeluTanhFormula>(context);
}

void GELU::backward_input(const BackwardContext& context) const {
  const ConstTensor& x = context.input;
  if (vectorized(context.stream, x)) {
    if (!context.input_gradient.there()) return;
    return host::gelu_gradient(context.stream, x.elements(), values_of<Bf16>(x),
                               values_of<Bf16>(context.output_gradient),
                               values_of<Bf16>(context.input_gradient));
  }
  if (form_ == GeluForm::kErf) return run_backward<GeluFormula>(context, x);
  run_backward<GeluTanhFormula>(context, x);
}

void relu_gradient(Stream& stream, const ConstTensor& output, const ConstTensor& output_gradient,
                   const Tensor& gradient) {
  with_type_of(output, [&]<typename T>() {
    for_each(stream, output.elements(),
             Map2<Passed, T>{values_of<T>(output), values_of<T>(output_gradient), values_of<T>(gradient)});
  });
}

}  // namespace pipeoptim
