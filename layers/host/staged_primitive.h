// A oneDNN primitive whose operands come and go in our layouts: where oneDNN wants another one, the operand
// is reordered through the workspace. Everything is made at plan time; execute() allocates nothing here.
#pragma once

#include <cstddef>
#include <dnnl.hpp>
#include <vector>

#include "layers/layer.h"

namespace pipeoptim::host {

class StagedPrimitive {
 public:
  enum class Role {
    kInput,
    kOutput,
    kAccumulated  // an output that GradientMode adds to: always through the workspace
  };
  struct Operand {
    int argument;              // DNNL_ARG_...
    dnnl::memory::desc ours;   // layout of the caller's pointer
    dnnl::memory::desc inner;  // layout that the primitive works on
    Role role;
  };

  StagedPrimitive(const dnnl::engine& engine, const dnnl::primitive& primitive,
                  const dnnl::memory::desc& scratchpad, const std::vector<Operand>& operands);

  std::size_t workspace_bytes() const { return workspace_bytes_; }

  // `pointers` in the order of the operands. Throws DeviceError.
  void execute(void* const* pointers, std::byte* workspace, GradientMode mode = GradientMode::kStore);

 private:
  // A memory object that is told its address only when it changes: setting it may write padding.
  struct Place {
    dnnl::memory memory;
    void* address = nullptr;
    void move_to(void* to);
  };
  struct Slot {
    Role role;
    Place ours;
    Place inner;
    bool staged = false;
    std::size_t offset = 0;
    dnnl::reorder store;  // ours -> inner, or inner -> ours
    dnnl::reorder add;    // inner added to ours
  };

  std::size_t reserve(std::size_t bytes);
  void reorder(const dnnl::primitive& primitive, const Place& from, const Place& to);

  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::primitive primitive_;
  std::vector<Slot> slots_;
  Place scratchpad_;
  std::size_t scratchpad_offset_ = 0;
  std::size_t workspace_bytes_ = 0;
  std::vector<dnnl_exec_arg_t> arguments_;
};

}  // namespace pipeoptim::host
