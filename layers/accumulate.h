// Adds one array to another.
#pragma once

#include <cstdint>

#include "kernels/runtime/stream.h"
#include "layers/tensor.h"

namespace pipeoptim {

// sums[i] += terms[i]
void accumulate(Stream& stream, std::int64_t count, const float* terms, float* sums);
// The same of tensors of one type.
void accumulate(Stream& stream, const ConstTensor& terms, const Tensor& sums);

}  // namespace pipeoptim
