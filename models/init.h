// First values of parameters, from counted random numbers.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/layer.h"

namespace pipeoptim {

// `parameter` counts the trained tensors of the whole model; together with the seed it names the random
// numbers, so the values do not depend on stages or threads. In PyTorch's order; of a part of a tensor,
// `first` is the place of its first value in the whole.
std::vector<float> initial_values(const Initializer& initializer, const Shape& shape, std::uint64_t seed,
                                  std::uint64_t parameter, std::uint64_t first = 0);

}  // namespace pipeoptim
