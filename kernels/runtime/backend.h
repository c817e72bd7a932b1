// The seam behind Stream, Event and Memory: what each backend makes. Private to kernels/runtime.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/graph.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim::detail {

std::unique_ptr<StreamImpl> make_host_stream(const StreamOptions& options);
std::unique_ptr<StreamImpl> make_cuda_stream(Device device, const StreamOptions& options);
std::shared_ptr<EventImpl> make_host_event(EventTiming timing);
std::shared_ptr<EventImpl> make_cuda_event(Device device, EventTiming timing);

// Thread-local captures; the last one ends one that is not wanted.
void cuda_begin_capture(StreamImpl& stream);
std::unique_ptr<GraphImpl> cuda_end_capture(Device device, StreamImpl& stream);
void cuda_drop_capture(StreamImpl& stream) noexcept;

int cuda_device_count();
std::string cuda_describe(int ordinal);
bool cuda_enable_peer_access(int ordinal, int peer);
void cuda_make_current(int ordinal);
// Zero-filled; throw DeviceError with the size where there is no memory.
void* cuda_allocate(Device device, std::size_t bytes, MemoryKind kind);
void cuda_free(Device device, void* memory, MemoryKind kind) noexcept;
void cuda_copy(void* to, const void* from, std::size_t bytes);

}  // namespace pipeoptim::detail
