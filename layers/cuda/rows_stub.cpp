// Stands in for rows.cpp in a build without CUDA.
#include "layers/vendor_rows.h"

namespace pipeoptim::detail {

std::unique_ptr<VendorNorm> make_cuda_norm(Device, const VendorNormSpec&) { return nullptr; }
std::unique_ptr<VendorPool> make_cuda_pool(Device, const VendorPoolSpec&) { return nullptr; }

}  // namespace pipeoptim::detail
