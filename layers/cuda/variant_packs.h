// The operands of a cuDNN plan: what cudnnBackendExecute is given beside the plan.
#pragma once

#include <cudnn.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "layers/cuda/handles.h"

namespace pipeoptim::cuda {

struct PlanAddresses {
  static constexpr std::size_t kMaxTensors = 12;
  std::array<const void*, kMaxTensors> tensors{};  // in the order of the ids, then null
  std::byte* workspace = nullptr;

  bool operator==(const PlanAddresses&) const = default;
};

// Making a descriptor costs calls and host memory. The buffers of a training are few and stay where they are,
// so each set of addresses gets a descriptor once; when there are kKept of them, the oldest is made anew.
class VariantPacks {
 public:
  static constexpr std::size_t kKept = 64;

  explicit VariantPacks(std::vector<std::int64_t> ids);
  // Valid until the next call. Throws DeviceError.
  cudnnBackendDescriptor_t of(const PlanAddresses& addresses);

 private:
  using Descriptor = Owned<cudnnBackendDescriptor_t, cudnnBackendDestroyDescriptor>;
  struct Entry {
    PlanAddresses addresses;
    Descriptor descriptor;
  };

  Descriptor make(const PlanAddresses& addresses) const;

  std::vector<std::int64_t> ids_;
  std::vector<Entry> entries_;
  std::size_t oldest_ = 0;
};

}  // namespace pipeoptim::cuda
