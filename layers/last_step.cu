#include <stdexcept>

#include "kernels/runtime/launch.h"
#include "layers/last_step.h"
#include "layers/tiles.h"

namespace pipeoptim {
namespace {

struct CopyLast {
  const float* input;
  float* output;
  std::int64_t features, length;
  PO_HD void operator()(std::int64_t i) const {
    output[i] = input[(i / features * length + length - 1) * features + i % features];
  }
};

// 0 at the other positions.
struct SpreadLast {
  const float* output_gradient;
  float* input_gradient;
  std::int64_t features, length;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const bool last = row % length == length - 1;
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      Pack<kWidth> value{};
      if (last) {
        const auto gradient = load_tile<kWidth>(output_gradient + row / length * features + c);
        for (int v = 0; v < kWidth; ++v) value.value[v] = gradient.value[v];
      }
      store_tile(input_gradient + row * features + c, value);
    });
  }
};

}  // namespace

LayerPlan LastStep::plan(Device, int, const Shape& input) {
  if (input.rank() != 3 || input.elements() < 1)
    throw std::invalid_argument("last step: the input must be NxTxF, got " + input.to_string());
  LayerPlan plan;
  plan.output = {input[0], input[2]};
  plan.needs = Needs::kNothing;
  plan.bytes = sizeof(float) * static_cast<double>(input.elements() + 3 * plan.output.elements());
  return plan;
}

void LastStep::forward(const ForwardContext& context) const {
  const Shape& shape = context.input.shape;
  for_each(context.stream, context.output.elements(),
           CopyLast{context.input.data, context.output.data, shape[2], shape[1]});
}

void LastStep::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  const Shape& shape = context.input_gradient.shape;
  const float* const dy = context.output_gradient.data;
  for_each_row(context.stream, shape[0] * shape[1], shape[2],
               SpreadLast{dy, context.input_gradient.data, shape[2], shape[1],
                          allow_tiles(shape[2], dy, context.input_gradient.data)});
}

}  // namespace pipeoptim
