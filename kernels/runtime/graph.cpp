#include "kernels/runtime/graph.h"

#include <stdexcept>

#include "kernels/runtime/backend.h"

namespace pipeoptim {

Graph::Capture::Capture(Stream& stream) : stream_(stream) {
  if (stream.device().backend != Backend::kCuda) {
    throw std::logic_error("work of a host stream cannot be captured");
  }
  detail::cuda_begin_capture(*stream.impl_);
}

Graph::Capture::~Capture() {
  if (open_) detail::cuda_drop_capture(*stream_.impl_);
}

Graph Graph::Capture::end() {
  open_ = false;
  return Graph(detail::cuda_end_capture(stream_.device(), *stream_.impl_));
}

}  // namespace pipeoptim
