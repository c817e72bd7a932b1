// Streams and events: every piece of work runs in the order of a stream; events order streams among each
// other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/runtime/device.h"

namespace pipeoptim {

// A host task of bounded size: a callable copied into fixed storage, so that submitting never allocates.
class Task {
 public:
  static constexpr std::size_t kCapacity = 1280;

  Task() = default;
  template <typename F>
  requires(!std::is_same_v<std::decay_t<F>, Task>)
      Task(F&& function) {  // NOLINT(google-explicit-constructor): a callable is a task
    using Function = std::decay_t<F>;
    static_assert(sizeof(Function) <= kCapacity, "task too large for a stream's queue");
    static_assert(alignof(Function) <= alignof(std::max_align_t));
    static_assert(std::is_trivially_copyable_v<Function>,
                  "tasks hold plain values: capture pointers, not owners");
    ::new (static_cast<void*>(storage_)) Function(std::forward<F>(function));
    size_ = sizeof(Function);
    call_ = [](void* storage) { (*static_cast<Function*>(storage))(); };
  }
  Task(const Task& other) { *this = other; }
  Task& operator=(const Task& other);

  void operator()() { call_(storage_); }

 private:
  alignas(std::max_align_t) unsigned char storage_[kCapacity];
  std::size_t size_ = 0;
  void (*call_)(void*) = nullptr;
};

class Event;

namespace detail {

class StreamImpl {
 public:
  virtual ~StreamImpl() = default;
  virtual void submit(const Task& task) = 0;
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill_zero(void* to, std::size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual void throw_if_failed() = 0;
  virtual void* native() = 0;
};

class EventImpl {
 public:
  virtual ~EventImpl() = default;
  virtual void record(StreamImpl& stream) = 0;
  virtual void make_wait(StreamImpl& stream) = 0;
  virtual void synchronize() = 0;
  virtual bool done() = 0;
  virtual double milliseconds_since(EventImpl& earlier) = 0;
};

}  // namespace detail

// How a host stream runs its work.
enum class HostExecution {
  kWorker,    // on a worker thread of its own: asynchronous, as on a device
  kBorrowed,  // on the thread that makes it ready: whoever submits it, or completes the event it waits for.
              // For short tasks, which are not worth waking a thread
  kInline     // at once, in the caller: an oracle for tests ("one queue")
};

struct StreamOptions {
  int threads = 1;  // host: cores that loops and library calls of this stream may use
  HostExecution execution = HostExecution::kWorker;
  std::string name = "stream";  // thread name, profiler range
  // Host, kWorker: the processors, by the system's numbers, that the worker and its OpenMP team run on.
  // Empty: any.
  std::vector<int> processors = {};
};

// An in-order queue of work on one device. Movable, not copyable. The destructor waits for the work and drops
// errors.
class Stream {
 public:
  explicit Stream(Device device, StreamOptions options = {});
  ~Stream();
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;

  Device device() const { return device_; }
  int threads() const { return threads_; }

  // Enqueues a task that runs on the host: on a host stream in its worker, on a CUDA stream as a host
  // function (which then must not call CUDA). Captures must be trivially copyable and outlive the execution.
  void submit(const Task& task);

  // Stream-ordered copy between any two places that this stream's device can reach. Pageable memory may make
  // it synchronous on CUDA: use pinned buffers.
  void copy(void* to, const void* from, std::size_t bytes);

  // Stream-ordered fill with zero bytes.
  void fill_zero(void* to, std::size_t bytes);

  // Later work of this stream starts after the event's most recent record. Never blocks the caller.
  void wait(const Event& event);
  void record(Event& event);

  // Blocks until all submitted work is done, then rethrows the first error of the stream.
  void synchronize();

  // Rethrows the first error that is already known, without waiting.
  void throw_if_failed();

  // cudaStream_t, or null on the host.
  void* native() const;

 private:
  friend class Event;
  friend class Graph;
  Device device_;
  int threads_ = 1;
  std::unique_ptr<detail::StreamImpl> impl_;
};

enum class EventTiming { kOff, kOn };

// A point in a stream's order. Copies share the point. An event that was never recorded counts as done.
class Event {
 public:
  explicit Event(Device device, EventTiming timing = EventTiming::kOff);

  bool done() const;
  void synchronize() const;
  // Milliseconds between two recorded, completed events made with EventTiming::kOn.
  double milliseconds_since(const Event& earlier) const;

 private:
  friend class Stream;
  std::shared_ptr<detail::EventImpl> impl_;
};

}  // namespace pipeoptim
