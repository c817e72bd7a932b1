#include "layers/cuda/variant_packs.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "layers/cuda/cudnn_check.h"

namespace pipeoptim::cuda {
namespace {

void set(cudnnBackendDescriptor_t pack, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
         std::size_t count, const void* values) {
  check(cudnnBackendSetAttribute(pack, name, type, static_cast<std::int64_t>(count), values),
        "cudnnBackendSetAttribute of a variant pack");
}

}  // namespace

VariantPacks::VariantPacks(std::vector<std::int64_t> ids) : ids_(std::move(ids)) {
  if (ids_.size() > PlanAddresses::kMaxTensors) throw std::logic_error("variant packs: too many tensors");
  entries_.reserve(kKept);
}

cudnnBackendDescriptor_t VariantPacks::of(const PlanAddresses& addresses) {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.addresses == addresses; });
  if (found != entries_.end()) return found->descriptor.get();
  Entry made{addresses, make(addresses)};
  if (entries_.size() < kKept) {
    entries_.push_back(std::move(made));
    return entries_.back().descriptor.get();
  }
  Entry& replaced = entries_[oldest_];
  oldest_ = (oldest_ + 1) % kKept;
  replaced = std::move(made);
  return replaced.descriptor.get();
}

VariantPacks::Descriptor VariantPacks::make(const PlanAddresses& addresses) const {
  cudnnBackendDescriptor_t created = nullptr;
  check(cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &created),
        "cudnnBackendCreateDescriptor of a variant pack");
  Descriptor pack(created);
  set(created, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, ids_.size(), ids_.data());
  set(created, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, ids_.size(),
      addresses.tensors.data());
  set(created, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &addresses.workspace);
  check(cudnnBackendFinalize(created), "cudnnBackendFinalize of a variant pack");
  return pack;
}

}  // namespace pipeoptim::cuda
