// Host streams: a worker thread that runs tasks from a bounded ring, in order. A failed task is kept, the
// tasks after it are skipped (events still complete, so nobody hangs), and synchronize() rethrows it, as CUDA
// does.
#include <omp.h>
#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/runtime/backend.h"

namespace pipeoptim::detail {
namespace {

using Clock = std::chrono::steady_clock;

class HostStream : public StreamImpl {
 public:
  // Runs even after a failure: what other streams wait for.
  virtual void submit_always(const Task& task) = 0;

  void copy(void* to, const void* from, std::size_t bytes) override {
    submit([=] { std::memcpy(to, from, bytes); });
  }
  void fill_zero(void* to, std::size_t bytes) override {
    submit([=] { std::memset(to, 0, bytes); });
  }
  void* native() override { return nullptr; }
};

class WorkerStream final : public HostStream {
 public:
  explicit WorkerStream(const StreamOptions& options) : ring_(kRing), options_(options) {
    worker_ = std::thread([this] { work(); });
  }
  ~WorkerStream() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    not_empty_.notify_one();
    worker_.join();
  }

  void submit(const Task& task) override { push(task, false); }
  void submit_always(const Task& task) override { push(task, true); }

  void synchronize() override {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return done_ == submitted_; });
    rethrow(lock);
  }
  void throw_if_failed() override {
    std::unique_lock lock(mutex_);
    rethrow(lock);
  }

 private:
  static constexpr std::size_t kRing = 512;  // tasks in flight; submit blocks beyond
  struct Entry {
    Task task;
    bool always = false;
  };

  void push(const Task& task, bool always) {
    {
      std::unique_lock lock(mutex_);
      not_full_.wait(lock, [this] { return submitted_ - done_ < kRing; });
      Entry& entry = ring_[submitted_ % kRing];
      entry.task = task;
      entry.always = always;
      ++submitted_;
    }
    not_empty_.notify_one();
  }

  void work() {
    pthread_setname_np(pthread_self(), options_.name.substr(0, 15).c_str());
    omp_set_num_threads(options_.threads);  // of this thread only
    std::unique_lock lock(mutex_);
    while (true) {
      not_empty_.wait(lock, [this] { return stop_ || done_ < submitted_; });
      if (done_ == submitted_) return;
      Entry& entry = ring_[done_ % kRing];
      if (!error_ || entry.always) {
        lock.unlock();
        std::exception_ptr error;
        try {
          entry.task();
        } catch (...) {
          error = std::current_exception();
        }
        lock.lock();
        if (error && !error_) error_ = error;
      }
      ++done_;
      not_full_.notify_one();
      if (done_ == submitted_) idle_.notify_all();
    }
  }

  void rethrow(std::unique_lock<std::mutex>& lock) {
    if (!error_) return;
    const std::exception_ptr error = error_;
    lock.unlock();
    std::rethrow_exception(error);
  }

  std::mutex mutex_;
  std::condition_variable not_empty_, not_full_, idle_;
  std::vector<Entry> ring_;
  std::uint64_t submitted_ = 0;
  std::uint64_t done_ = 0;
  std::exception_ptr error_;
  bool stop_ = false;
  StreamOptions options_;
  std::thread worker_;
};

// Runs each task at once in the caller, with the same handling of errors.
class InlineStream final : public HostStream {
 public:
  explicit InlineStream(const StreamOptions& options) : threads_(options.threads) {}
  void submit(const Task& task) override {
    if (!error_) submit_always(task);
  }
  void submit_always(const Task& task) override {
    const int before = omp_get_max_threads();
    omp_set_num_threads(threads_);
    try {
      Task copy = task;
      copy();
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    omp_set_num_threads(before);
  }
  void synchronize() override { throw_if_failed(); }
  void throw_if_failed() override {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  int threads_;
  std::exception_ptr error_;
};

// Counts its records: a wait is for the record that was the latest when it was submitted.
class HostEvent final : public EventImpl {
 public:
  explicit HostEvent(EventTiming timing) : timing_(timing) {}

  void record(StreamImpl& stream) override {
    std::uint64_t generation = 0;
    {
      const std::lock_guard lock(mutex_);
      generation = ++recorded_;
    }
    host(stream).submit_always([this, generation] {
      const std::lock_guard lock(mutex_);
      if (timing_ == EventTiming::kOn) time_ = Clock::now();
      if (generation > completed_) completed_ = generation;
      reached_.notify_all();  // under the lock: whoever sees the event done may destroy it
    });
  }

  void make_wait(StreamImpl& stream) override {
    std::uint64_t generation = 0;
    {
      const std::lock_guard lock(mutex_);
      generation = recorded_;
      if (completed_ >= generation) return;
    }
    host(stream).submit_always([this, generation] { wait_for(generation); });
  }

  void synchronize() override {
    std::uint64_t generation = 0;
    {
      const std::lock_guard lock(mutex_);
      generation = recorded_;
    }
    wait_for(generation);
  }

  bool done() override {
    const std::lock_guard lock(mutex_);
    return completed_ >= recorded_;
  }

  double milliseconds_since(EventImpl& earlier) override {
    auto& other = dynamic_cast<HostEvent&>(earlier);
    if (timing_ != EventTiming::kOn || other.timing_ != EventTiming::kOn) {
      throw std::logic_error("the time between events needs EventTiming::kOn on both");
    }
    const std::scoped_lock lock(mutex_, other.mutex_);
    return std::chrono::duration<double, std::milli>(time_ - other.time_).count();
  }

 private:
  static HostStream& host(StreamImpl& stream) {
    auto* host_stream = dynamic_cast<HostStream*>(&stream);
    if (!host_stream) throw std::logic_error("a host event was used on a stream of another backend");
    return *host_stream;
  }
  void wait_for(std::uint64_t generation) {
    std::unique_lock lock(mutex_);
    reached_.wait(lock, [&] { return completed_ >= generation; });
  }

  std::mutex mutex_;
  std::condition_variable reached_;
  std::uint64_t recorded_ = 0;
  std::uint64_t completed_ = 0;
  EventTiming timing_;
  Clock::time_point time_;
};

}  // namespace

std::unique_ptr<StreamImpl> make_host_stream(const StreamOptions& options) {
  if (options.execution == HostExecution::kInline) return std::make_unique<InlineStream>(options);
  return std::make_unique<WorkerStream>(options);
}
std::shared_ptr<EventImpl> make_host_event(EventTiming timing) { return std::make_shared<HostEvent>(timing); }

}  // namespace pipeoptim::detail
