// What a build without CUDA answers.
#include "kernels/runtime/backend.h"
#include "kernels/runtime/error.h"

namespace pipeoptim::detail {
namespace {

[[noreturn]] void refuse(const char* call) { throw DeviceError(call, "this program was built without CUDA"); }

}  // namespace

std::unique_ptr<StreamImpl> make_cuda_stream(Device, const StreamOptions&) {
  refuse("creating a CUDA stream");
}
std::shared_ptr<EventImpl> make_cuda_event(Device, EventTiming) { refuse("creating a CUDA event"); }
void cuda_begin_capture(StreamImpl&) { refuse("capturing a stream"); }
std::unique_ptr<GraphImpl> cuda_end_capture(Device, StreamImpl&) { refuse("capturing a stream"); }
void cuda_drop_capture(StreamImpl&) noexcept {}
int cuda_device_count() { return 0; }
std::string cuda_describe(int) { refuse("describing a CUDA device"); }
bool cuda_enable_peer_access(int, int) { refuse("enabling peer access"); }
void cuda_make_current(int) { refuse("choosing a CUDA device"); }
void* cuda_allocate(Device, std::size_t, MemoryKind) { refuse("allocating CUDA memory"); }
void cuda_free(Device, void*, MemoryKind) noexcept {}
void cuda_copy(void*, const void*, std::size_t) { refuse("copying CUDA memory"); }

}  // namespace pipeoptim::detail
