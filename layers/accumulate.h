// Adds one array to another.
#pragma once

#include <cstdint>

#include "kernels/runtime/stream.h"

namespace pipeoptim {

// sums[i] += terms[i]
void accumulate(Stream& stream, std::int64_t count, const float* terms, float* sums);

}  // namespace pipeoptim
