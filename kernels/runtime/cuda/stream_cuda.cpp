// CUDA streams and events. All streams are non-blocking: nothing is ordered against the default stream.
#include <array>
#include <atomic>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/cuda/cuda_check.h"

namespace pipeoptim::detail {
namespace {

using cuda::check;
using cuda::DeviceGuard;

class OwnedEvent {
 public:
  OwnedEvent(Device device, EventTiming timing) {
    const DeviceGuard guard(device);
    const unsigned flags = timing == EventTiming::kOn ? cudaEventDefault : cudaEventDisableTiming;
    check(cudaEventCreateWithFlags(&event_, flags), "cudaEventCreateWithFlags");
  }
  ~OwnedEvent() { static_cast<void>(cudaEventDestroy(event_)); }
  OwnedEvent(const OwnedEvent&) = delete;
  OwnedEvent& operator=(const OwnedEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class OwnedStream {
 public:
  explicit OwnedStream(Device device) {
    const DeviceGuard guard(device);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~OwnedStream() {
    static_cast<void>(cudaStreamSynchronize(stream_));
    static_cast<void>(cudaStreamDestroy(stream_));
  }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaStream final : public StreamImpl {
 public:
  explicit CudaStream(Device device)
      : device_(device),
        slots_(kSlots),
        half_done_{OwnedEvent(device, EventTiming::kOff), OwnedEvent(device, EventTiming::kOff)},
        stream_(device) {}

  // The slots are reused by halves, after the event behind the last task of the half: only a host that is
  // more than half of the slots ahead waits. A captured task stays, as the graph runs it again and again.
  void submit(const Task& task) override {
    const std::lock_guard lock(submit_mutex_);
    if (capturing()) {
      launch(captured_.emplace_back(), task);
      return;
    }
    const std::size_t half = next_ / kHalf;
    if (next_ % kHalf == 0) check(cudaEventSynchronize(half_done_[half].get()), "cudaEventSynchronize");
    launch(slots_[next_], task);
    next_ = (next_ + 1) % kSlots;
    if (next_ % kHalf == 0) check(cudaEventRecord(half_done_[half].get(), stream_.get()), "cudaEventRecord");
  }

  void copy(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_.get()), "cudaMemcpyAsync");
  }
  void fill_zero(void* to, std::size_t bytes) override {
    check(cudaMemsetAsync(to, 0, bytes, stream_.get()), "cudaMemsetAsync");
  }

  void synchronize() override {
    const cudaError_t status = cudaStreamSynchronize(stream_.get());
    rethrow();
    check(status, "cudaStreamSynchronize");
  }
  void throw_if_failed() override {
    rethrow();
    if (capturing()) return;  // nothing has run, and asking would end the capture
    const cudaError_t status = cudaStreamQuery(stream_.get());
    if (status == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
    } else {
      check(status, "cudaStreamQuery");
    }
  }

  void* native() override { return stream_.get(); }
  Device device() const { return device_; }

 private:
  static constexpr std::size_t kSlots = 128;
  static constexpr std::size_t kHalf = kSlots / 2;
  struct Slot {
    Task task;
    CudaStream* stream = nullptr;
  };

  void launch(Slot& slot, const Task& task) {
    slot.task = task;
    slot.stream = this;
    check(cudaLaunchHostFunc(stream_.get(), &CudaStream::run, &slot), "cudaLaunchHostFunc");
  }

  // Called by the driver, which must see no exception. After a failure the other tasks are skipped.
  static void CUDART_CB run(void* data) {
    Slot& slot = *static_cast<Slot*>(data);
    CudaStream& stream = *slot.stream;
    if (stream.failed_) return;
    try {
      slot.task();
    } catch (...) {
      const std::lock_guard lock(stream.error_mutex_);
      stream.error_ = std::current_exception();
      stream.failed_ = true;
    }
  }

  void rethrow() {
    if (!failed_) return;
    const std::lock_guard lock(error_mutex_);
    std::rethrow_exception(error_);
  }

  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream_.get(), &status), "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }

  Device device_;
  std::mutex submit_mutex_;
  std::vector<Slot> slots_;
  std::deque<Slot> captured_;
  std::size_t next_ = 0;
  std::array<OwnedEvent, 2> half_done_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::atomic<bool> failed_ = false;
  OwnedStream stream_;  // the last member: destroyed first, when it waits for the tasks in the slots
};

class CudaEvent final : public EventImpl {
 public:
  CudaEvent(Device device, EventTiming timing) : device_(device), timing_(timing), event_(device, timing) {}

  void record(StreamImpl& stream) override {
    const CudaStream& on = cuda_stream(stream);
    if (on.device() != device_) {
      throw std::logic_error("an event of " + to_string(device_) + " was recorded on a stream of " +
                             to_string(on.device()));
    }
    check(cudaEventRecord(event_.get(), native(stream)), "cudaEventRecord");
  }
  void make_wait(StreamImpl& stream) override {
    static_cast<void>(cuda_stream(stream));
    check(cudaStreamWaitEvent(native(stream), event_.get(), 0), "cudaStreamWaitEvent");
  }
  void synchronize() override { check(cudaEventSynchronize(event_.get()), "cudaEventSynchronize"); }
  bool done() override {
    const cudaError_t status = cudaEventQuery(event_.get());
    if (status == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    check(status, "cudaEventQuery");
    return true;
  }
  double milliseconds_since(EventImpl& earlier) override {
    auto& other = dynamic_cast<CudaEvent&>(earlier);
    if (timing_ != EventTiming::kOn || other.timing_ != EventTiming::kOn) {
      throw std::logic_error("the time between events needs EventTiming::kOn on both");
    }
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, other.event_.get(), event_.get()), "cudaEventElapsedTime");
    return static_cast<double>(milliseconds);
  }

 private:
  static CudaStream& cuda_stream(StreamImpl& stream) {
    auto* found = dynamic_cast<CudaStream*>(&stream);
    if (!found) throw std::logic_error("a CUDA event was used on a stream of another backend");
    return *found;
  }
  static cudaStream_t native(StreamImpl& stream) { return static_cast<cudaStream_t>(stream.native()); }

  Device device_;
  EventTiming timing_;
  OwnedEvent event_;
};

}  // namespace

std::unique_ptr<StreamImpl> make_cuda_stream(Device device, const StreamOptions&) {
  return std::make_unique<CudaStream>(device);
}
std::shared_ptr<EventImpl> make_cuda_event(Device device, EventTiming timing) {
  return std::make_shared<CudaEvent>(device, timing);
}

}  // namespace pipeoptim::detail
