#include "layers/host/staged_primitive.h"

#include <array>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/error.h"

namespace pipeoptim::host {
namespace {

void require_success(dnnl_status_t status, const char* call) {
  if (status != dnnl_success) throw DeviceError(call, "status " + std::to_string(static_cast<int>(status)));
}

dnnl::memory unplaced(const dnnl::engine& engine, const dnnl::memory::desc& layout) {
  return {layout, engine, DNNL_MEMORY_NONE};
}

dnnl::reorder make_reorder(const dnnl::engine& engine, const dnnl::memory::desc& from,
                           const dnnl::memory::desc& to, GradientMode mode) {
  dnnl::primitive_attr attributes = dnnl::primitive_attr();
  if (mode == GradientMode::kAdd) {
    dnnl::post_ops sum;
    sum.append_sum(1.0F);
    attributes.set_post_ops(sum);
  }
  return dnnl::reorder(dnnl::reorder::primitive_desc(engine, from, engine, to, attributes));
}

}  // namespace

void StagedPrimitive::Place::move_to(void* to) {
  if (to == address) return;
  require_success(dnnl_memory_set_data_handle(memory.get(), to), "dnnl_memory_set_data_handle");
  address = to;
}

StagedPrimitive::StagedPrimitive(const dnnl::engine& engine, const dnnl::primitive& primitive,
                                 const dnnl::memory::desc& scratchpad, const std::vector<Operand>& operands)
    : engine_(engine), stream_(engine), primitive_(primitive) {
  for (const Operand& operand : operands) {
    Slot slot;
    slot.role = operand.role;
    slot.ours.memory = unplaced(engine, operand.ours);
    slot.staged = operand.role == Role::kAccumulated || operand.inner != operand.ours;
    if (slot.staged) {
      slot.inner.memory = unplaced(engine, operand.inner);
      slot.offset = reserve(operand.inner.get_size());
      const bool in = operand.role == Role::kInput;
      slot.store = make_reorder(engine, in ? operand.ours : operand.inner, in ? operand.inner : operand.ours,
                                GradientMode::kStore);
      if (operand.role == Role::kAccumulated) {
        slot.add = make_reorder(engine, operand.inner, operand.ours, GradientMode::kAdd);
      }
    }
    arguments_.push_back({operand.argument, (slot.staged ? slot.inner : slot.ours).memory.get()});
    slots_.push_back(std::move(slot));
  }
  if (scratchpad.get_size() > 0) {
    scratchpad_.memory = unplaced(engine, scratchpad);
    scratchpad_offset_ = reserve(scratchpad.get_size());
    arguments_.push_back({DNNL_ARG_SCRATCHPAD, scratchpad_.memory.get()});
  }
}

std::size_t StagedPrimitive::reserve(std::size_t bytes) {
  const std::size_t offset = workspace_bytes_;
  workspace_bytes_ += align_up(bytes);
  return offset;
}

void StagedPrimitive::reorder(const dnnl::primitive& primitive, const Place& from, const Place& to) {
  const std::array<dnnl_exec_arg_t, 2> arguments{
      {{DNNL_ARG_FROM, from.memory.get()}, {DNNL_ARG_TO, to.memory.get()}}};
  require_success(dnnl_primitive_execute(primitive.get(), stream_.get(), 2, arguments.data()),
                  "dnnl_primitive_execute (reorder)");
}

void StagedPrimitive::execute(void* const* pointers, std::byte* workspace, GradientMode mode) {
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    slot.ours.move_to(pointers[i]);
    if (!slot.staged) continue;
    slot.inner.move_to(workspace + slot.offset);
    if (slot.role == Role::kInput) reorder(slot.store, slot.ours, slot.inner);
  }
  if (scratchpad_.memory) scratchpad_.move_to(workspace + scratchpad_offset_);
  require_success(dnnl_primitive_execute(primitive_.get(), stream_.get(), static_cast<int>(arguments_.size()),
                                         arguments_.data()),
                  "dnnl_primitive_execute");
  for (Slot& slot : slots_) {
    if (!slot.staged || slot.role == Role::kInput) continue;
    const bool adds = slot.role == Role::kAccumulated && mode == GradientMode::kAdd;
    reorder(adds ? slot.add : slot.store, slot.inner, slot.ours);
  }
}

}  // namespace pipeoptim::host
