// Direct access between the devices of one process.
#pragma once

#include "kernels/runtime/device.h"

namespace pipeoptim::cuda {

// Lets `device` reach the memory of `peer` directly, that of Memory included. False where the machine cannot:
// copies then still work, staged by the driver. May be called again.
bool enable_peer_access(Device device, Device peer);

}  // namespace pipeoptim::cuda
