// The seam between the engine and what carries tensors to stages in other processes.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/runtime/device.h"
#include "kernels/runtime/stream.h"
#include "pipeline/processes/process_group.h"

namespace pipeoptim {

// Directed edges of the pipeline that leave or enter this process. The neighbours are the previous and the
// next rank.
enum class Link : std::size_t {
  kActivationsFromPrevious,
  kGradientsToPrevious,
  kActivationsToNext,
  kGradientsFromNext
};
inline constexpr std::size_t kLinks = 4;

class PeerLinks {
 public:
  virtual ~PeerLinks() = default;
  // Stream-ordered; both return at once. The n-th send of a link meets the n-th receive at its other end,
  // of as many bytes. Each link has one stream at each end. Throw DeviceError when the group has failed.
  virtual void send(Link link, Stream& stream, const void* values, std::size_t bytes) = 0;
  virtual void receive(Link link, Stream& stream, void* values, std::size_t bytes) = 0;
  // Throws DeviceError when some process has failed.
  virtual void throw_if_failed() = 0;
  // Ends what is under way, with any values. For after a failure.
  virtual void abandon() noexcept = 0;
};

// Over NCCL, one process a device. Collective; blocks until all links carry tensors. Throws DeviceError, also
// where this program was built without NCCL.
std::unique_ptr<PeerLinks> make_nccl_links(ProcessGroup& group, Device device);
bool built_with_nccl();

}  // namespace pipeoptim
