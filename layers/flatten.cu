#include <stdexcept>

#include "kernels/runtime/launch.h"
#include "layers/flatten.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

// Transposes each record's {rows, columns} matrix; both directions of Flatten.
template <typename T>
struct TransposeRecord {
  const T* from;
  T* to;
  std::int32_t rows, columns;

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    const std::int32_t elements = rows * columns;
    const T* in = from + record * elements;
    T* out = to + record * elements;
#if defined(__CUDA_ARCH__)
    for (std::int32_t i = team.rank(); i < elements; i += team.size())
      out[i] = in[i % rows * columns + i / rows];
#else
    static_cast<void>(team);
    for (std::int32_t r = 0; r < rows; ++r) {
      for (std::int32_t c = 0; c < columns; ++c) out[c * rows + r] = in[r * columns + c];
    }
#endif
  }
};

void transpose_records(Stream& stream, const ConstTensor& from, const Tensor& to, std::int64_t rows,
                       std::int64_t columns) {
  with_type_of(from, [&]<typename T>() {
    const T* const in = values_of<T>(from);
    T* const out = values_of<T>(to);
    if (rows == 1 || columns == 1) return stream.copy(out, in, to.bytes());
    for_each_row(
        stream, from.shape[0], rows * columns,
        TransposeRecord<T>{in, out, static_cast<std::int32_t>(rows), static_cast<std::int32_t>(columns)});
  });
}

}  // namespace

LayerPlan Flatten::plan(Device, int, const Shape& input) {
  constexpr std::int64_t kMostValues = std::int64_t{1} << 30;
  if (input.rank() < 2 || input.elements() / input[0] > kMostValues)
    throw std::invalid_argument("flatten needs records of at most 2^30 values, got " + input.to_string());
  LayerPlan plan;
  plan.output = {input[0], input.elements() / input[0]};
  plan.needs = Needs::kNothing;
  plan.bytes = 4.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}
void Flatten::forward(const ForwardContext& context) const {
  const std::int64_t channels = context.input.shape.last();
  transpose_records(context.stream, context.input, context.output, context.output.shape[1] / channels,
                    channels);
}
void Flatten::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there()) return;
  const Shape& input = context.input_gradient.shape;
  transpose_records(context.stream, context.output_gradient, context.input_gradient, input.last(),
                    input.elements() / input[0] / input.last());
}

}  // namespace pipeoptim
