// GELU and its gradient on values in bf16, for AVX-512 BF16. Half the instructions of activation.cu's, whose
// accuracy is that of fp32.
#pragma once

#include <cstdint>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim::host {

// Whether the processor has the instructions, and so many values fill vectors.
bool handles_gelu(std::int64_t count);

// y = x Phi(x), and dx = dy times its slope, with Phi exact: y and the slope within 2e-6 of it before results
// are rounded to the nearest value; below x = -5.8, y stays at -2e-8 and the slope at -1e-7. Results below
// 2^-126 are zeros. Shared out among the stream's threads, in its order; a result may replace an argument.
// Bits do not depend on the number of threads.
void gelu(Stream& stream, std::int64_t count, const Bf16* x, Bf16* y);
void gelu_gradient(Stream& stream, std::int64_t count, const Bf16* x, const Bf16* dy, Bf16* dx);

}  // namespace pipeoptim::host
