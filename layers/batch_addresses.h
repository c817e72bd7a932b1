// Where the matrices of a batch of products lie, for libraries that want it in lists.
#pragma once

#include "layers/provider.h"

namespace pipeoptim {

// Fills batch.addresses in the order of the stream: those of all a, then of all b, then of all c.
void fill_addresses(Stream& stream, const Gemm& product, const GemmBatch& batch);

}  // namespace pipeoptim
