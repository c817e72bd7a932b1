// One value per column: added to every row, and its gradient. A column is a feature or a channel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/runtime/stream.h"
#include "layers/layer.h"

namespace pipeoptim {

enum class Bias { kNo, kYes };

// A dense row-major matrix: {N, F}, or the pixels and channels of {N, H, W, C}.
struct Rows {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

void add_bias(Stream& stream, Rows extents, const float* bias, const Destination& values);

// bias_gradient[c] = sum of column c. Rows are summed in chunks that depend on the extents only: the same
// bits for every thread count.
std::size_t bias_gradient_workspace(Rows extents);
void sum_bias_gradient(Stream& stream, Rows extents, const Factor& values, float* bias_gradient,
                       GradientMode mode, std::byte* workspace);

}  // namespace pipeoptim
