// The product of matrices that the optimizer's tests bring, on both backends.
#pragma once

#include "optim/optimizer.h"

namespace pipeoptim::test {

// Sums in the order of the indices, whatever the backend.
void multiply_plainly(Stream& stream, const MatrixProduct& product);

}  // namespace pipeoptim::test
