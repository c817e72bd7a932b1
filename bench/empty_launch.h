// A launch whose body does nothing. Launches are made in kernel files alone.
#pragma once

#include "kernels/runtime/stream.h"

namespace pipeoptim::bench {

void launch_nothing(Stream& stream);

}  // namespace pipeoptim::bench
