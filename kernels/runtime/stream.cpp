#include "kernels/runtime/stream.h"

#include <cstring>
#include <stdexcept>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/instruction_set.h"

namespace pipeoptim {

Task& Task::operator=(const Task& other) {
  if (this == &other) return *this;
  std::memcpy(storage_, other.storage_, other.size_);
  size_ = other.size_;
  call_ = other.call_;
  return *this;
}

Stream::Stream(Device device, StreamOptions options) : device_(device), threads_(options.threads) {
  if (options.threads < 1) {
    throw std::invalid_argument("a stream needs at least 1 thread, got " + std::to_string(options.threads));
  }
  require_usable(device);
  if (device.backend == Backend::kHost)
    static_cast<void>(instruction_set());  // a wrong choice: now, not later
  impl_ = device.backend == Backend::kHost ? detail::make_host_stream(options)
                                           : detail::make_cuda_stream(device, options);
}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

void Stream::submit(const Task& task) { impl_->submit(task); }
void Stream::copy(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) impl_->copy(to, from, bytes);
}
void Stream::fill_zero(void* to, std::size_t bytes) {
  if (bytes > 0) impl_->fill_zero(to, bytes);
}
void Stream::wait(const Event& event) { event.impl_->make_wait(*impl_); }
void Stream::record(Event& event) { event.impl_->record(*impl_); }
void Stream::synchronize() { impl_->synchronize(); }
void Stream::throw_if_failed() { impl_->throw_if_failed(); }
void* Stream::native() const { return impl_->native(); }

Event::Event(Device device, EventTiming timing)
    : impl_(device.backend == Backend::kHost ? detail::make_host_event(timing)
                                             : detail::make_cuda_event(device, timing)) {}
bool Event::done() const { return impl_->done(); }
void Event::synchronize() const { impl_->synchronize(); }
double Event::milliseconds_since(const Event& earlier) const {
  return impl_->milliseconds_since(*earlier.impl_);
}

}  // namespace pipeoptim
