#include <nvtx3/nvToolsExt.h>

#include "kernels/runtime/range.h"

namespace pipeoptim {

ProfilerRange::ProfilerRange(const char* name, int stage, std::int64_t number) noexcept {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.category = static_cast<std::uint32_t>(stage);
  attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
  attributes.payload.llValue = number;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  static_cast<void>(nvtxRangePushEx(&attributes));
}
ProfilerRange::~ProfilerRange() { static_cast<void>(nvtxRangePop()); }

}  // namespace pipeoptim
