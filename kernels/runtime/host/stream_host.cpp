// Host streams: tasks from a bounded ring, in order, on a worker thread or on borrowed ones. A failed task is
// kept, the tasks after it are skipped (events still complete, so nobody hangs), and synchronize() rethrows
// it, as CUDA does.
#include <omp.h>
#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels/runtime/backend.h"
#include "kernels/runtime/host/launch_host.h"

namespace pipeoptim::detail {
namespace {

using Clock = std::chrono::steady_clock;

class HostEvent;

class HostStream : public StreamImpl {
 public:
  // The stream goes on when the event has completed the record of this generation.
  virtual void wait_for(HostEvent& event, std::uint64_t generation) = 0;
  // Runs even after a failure: what other streams wait for.
  virtual void submit_always(const Task& task) = 0;

  void copy(void* to, const void* from, std::size_t bytes) override {
    share_out(bytes, [=](std::int64_t begin, std::int64_t end) {
      std::memcpy(static_cast<std::byte*>(to) + begin, static_cast<const std::byte*>(from) + begin,
                  static_cast<std::size_t>(end - begin));
    });
  }
  void fill_zero(void* to, std::size_t bytes) override {
    share_out(bytes, [=](std::int64_t begin, std::int64_t end) {
      std::memset(static_cast<std::byte*>(to) + begin, 0, static_cast<std::size_t>(end - begin));
    });
  }
  void* native() override { return nullptr; }

 private:
  // Threads that its tasks may use.
  virtual int team() const { return 1; }

  // Submits work(begin, end) on the bytes, by all threads where they are many.
  template <typename Work>
  void share_out(std::size_t bytes, const Work& work) {
    constexpr std::size_t kSerialBytes = 64 * 1024;
    submit([bytes, threads = bytes < kSerialBytes ? 1 : team(), work] {
      pipeoptim::host::for_shares(threads, static_cast<std::int64_t>(bytes), work);
    });
  }
};

// A stream that keeps its tasks until they have run, and the first error of them.
class QueuedStream : public HostStream {
 public:
  void throw_if_failed() override {
    std::unique_lock lock(mutex_);
    rethrow(lock);
  }

 protected:
  static constexpr std::size_t kRing = 512;  // tasks in flight; submit blocks beyond
  // Room that a blocked submitter waits for: woken after each task, it would take the processor from the next
  // one time and again.
  static constexpr std::size_t kRoom = kRing / 8;

  std::uint64_t in_flight() const { return submitted_ - done_; }
  void wait_for_room(std::unique_lock<std::mutex>& lock, std::condition_variable& room) {
    if (in_flight() == kRing) room.wait(lock, [this] { return in_flight() <= kRing - kRoom; });
  }
  void finish_task(std::condition_variable& room) {
    ++done_;
    if (in_flight() == kRing - kRoom) room.notify_all();
  }
  // Runs a task without the lock, unless one before it has failed.
  void run(std::unique_lock<std::mutex>& lock, Task& task, bool always) {
    if (error_ && !always) return;
    lock.unlock();
    std::exception_ptr error;
    try {
      task();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !error_) error_ = error;
  }
  void rethrow(std::unique_lock<std::mutex>& lock) {
    if (!error_) return;
    const std::exception_ptr error = error_;
    lock.unlock();
    std::rethrow_exception(error);
  }

  std::mutex mutex_;
  std::uint64_t submitted_ = 0;
  std::uint64_t done_ = 0;

 private:
  std::exception_ptr error_;
};

// The calling thread, and with it the threads of teams that it starts. Where the system refuses, it stays as
// it was: a matter of speed only.
void bind(const std::vector<int>& processors) {
  if (processors.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int processor : processors) {
    if (processor < CPU_SETSIZE) CPU_SET(static_cast<std::size_t>(processor), &set);
  }
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

// Throws where OpenMP would make smaller teams: threads of a library's would wait for those that are missing.
void require_teams_of(int threads) {
  if (threads == 1) return;
  const auto refuse = [threads](const std::string& reason) {
    throw std::invalid_argument("a stream of " + std::to_string(threads) + " threads: " + reason +
                                "; change that, or ask for fewer threads");
  };
  if (omp_get_thread_limit() < threads) {
    refuse("OMP_THREAD_LIMIT allows " + std::to_string(omp_get_thread_limit()));
  }
  if (omp_get_max_active_levels() < 1) refuse("OMP_MAX_ACTIVE_LEVELS is 0");
}

class WorkerStream final : public QueuedStream {
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
  void wait_for(HostEvent& event, std::uint64_t generation) override;

  void synchronize() override {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return done_ == submitted_; });
    rethrow(lock);
  }

 private:
  struct Entry {
    Task task;
    bool always = false;
  };

  int team() const override { return options_.threads; }

  void push(const Task& task, bool always) {
    {
      std::unique_lock lock(mutex_);
      wait_for_room(lock, room_);
      Entry& entry = ring_[submitted_ % kRing];
      entry.task = task;
      entry.always = always;
      ++submitted_;
    }
    not_empty_.notify_one();
  }

  void work() {
    pthread_setname_np(pthread_self(), options_.name.substr(0, 15).c_str());
    bind(options_.processors);
    omp_set_num_threads(options_.threads);  // of this thread only, as the next
    omp_set_dynamic(0);                     // no smaller teams where the machine is busy
    std::unique_lock lock(mutex_);
    while (true) {
      not_empty_.wait(lock, [this] { return stop_ || done_ < submitted_; });
      if (done_ == submitted_) return;
      Entry& entry = ring_[done_ % kRing];
      run(lock, entry.task, entry.always);
      finish_task(room_);
      if (done_ == submitted_) idle_.notify_all();
    }
  }

  std::condition_variable not_empty_, room_, idle_;
  std::vector<Entry> ring_;
  bool stop_ = false;
  StreamOptions options_;
  std::thread worker_;
};

// Has no thread. The submitter runs the tasks until one has to wait; then the stream is parked at the event,
// and whoever completes that goes on. At any time at most one thread runs it.
class BorrowedStream final : public QueuedStream {
 public:
  BorrowedStream() : ring_(kRing) {}
  ~BorrowedStream() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return state_ == State::kIdle; });
  }

  void submit(const Task& task) override { push({task, false, nullptr, 0}); }
  void submit_always(const Task& task) override { push({task, true, nullptr, 0}); }
  void wait_for(HostEvent& event, std::uint64_t generation) override { push({{}, true, &event, generation}); }

  void synchronize() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return state_ == State::kIdle; });
    rethrow(lock);
  }

  // Called once for each time that it was parked.
  void resume() {
    {
      const std::lock_guard lock(mutex_);
      state_ = State::kRunning;
      finish_task(changed_);
    }
    go_on();
  }

  // Of the list of streams that are parked at an event, which owns it.
  BorrowedStream* next_parked = nullptr;
  std::uint64_t parked_generation = 0;

 private:
  enum class State { kIdle, kRunning, kParked };
  struct Entry {
    Task task;
    bool always = false;
    HostEvent* event = nullptr;  // to wait for, in place of a task
    std::uint64_t generation = 0;
  };

  void push(const Entry& entry) {
    {
      std::unique_lock lock(mutex_);
      wait_for_room(lock, changed_);
      ring_[submitted_++ % kRing] = entry;
      if (state_ != State::kIdle) return;
      state_ = State::kRunning;
    }
    go_on();
  }

  void go_on();

  std::condition_variable changed_;
  std::vector<Entry> ring_;
  State state_ = State::kIdle;
};

// Runs each task at once in the caller, with the same handling of errors.
class InlineStream final : public HostStream {
 public:
  explicit InlineStream(const StreamOptions& options) : threads_(options.threads) {}
  void wait_for(HostEvent& event, std::uint64_t generation) override;
  void submit(const Task& task) override {
    if (!error_) submit_always(task);
  }
  void submit_always(const Task& task) override {
    const int before = omp_get_max_threads(), dynamic = omp_get_dynamic();
    omp_set_num_threads(threads_);
    omp_set_dynamic(0);
    try {
      Task copy = task;
      copy();
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    omp_set_num_threads(before);
    omp_set_dynamic(dynamic);
  }
  void synchronize() override { throw_if_failed(); }
  void throw_if_failed() override {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  int team() const override { return threads_; }

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
    host(stream).submit_always([this, generation] { complete(generation); });
  }

  void make_wait(StreamImpl& stream) override {
    std::uint64_t generation = 0;
    {
      const std::lock_guard lock(mutex_);
      generation = recorded_;
      if (completed_ >= generation) return;
    }
    host(stream).wait_for(*this, generation);
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

  void wait_for(std::uint64_t generation) {
    std::unique_lock lock(mutex_);
    reached_.wait(lock, [&] { return completed_ >= generation; });
  }

  // False where the record is complete already. Otherwise the stream is resumed when it is.
  bool park(BorrowedStream& stream, std::uint64_t generation) {
    const std::lock_guard lock(mutex_);
    if (completed_ >= generation) return false;
    stream.parked_generation = generation;
    stream.next_parked = parked_;
    parked_ = &stream;
    return true;
  }

 private:
  void complete(std::uint64_t generation) {
    BorrowedStream* ready = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (timing_ == EventTiming::kOn) time_ = Clock::now();
      if (generation > completed_) completed_ = generation;
      ready = take_ready();
      reached_.notify_all();  // under the lock: whoever sees the event done may destroy it
    }
    while (ready != nullptr) {
      BorrowedStream& stream = *ready;
      ready = stream.next_parked;  // before it goes on, and perhaps parks again
      stream.resume();
    }
  }

  // The parked streams that may go on, as a list of their own.
  BorrowedStream* take_ready() {
    BorrowedStream* ready = nullptr;
    for (BorrowedStream** link = &parked_; *link != nullptr;) {
      BorrowedStream* const stream = *link;
      if (stream->parked_generation > completed_) {
        link = &stream->next_parked;
        continue;
      }
      *link = stream->next_parked;
      stream->next_parked = ready;
      ready = stream;
    }
    return ready;
  }

  static HostStream& host(StreamImpl& stream) {
    auto* host_stream = dynamic_cast<HostStream*>(&stream);
    if (!host_stream) throw std::logic_error("a host event was used on a stream of another backend");
    return *host_stream;
  }

  std::mutex mutex_;
  std::condition_variable reached_;
  BorrowedStream* parked_ = nullptr;  // a list
  std::uint64_t recorded_ = 0;
  std::uint64_t completed_ = 0;
  EventTiming timing_;
  Clock::time_point time_;
};

void WorkerStream::wait_for(HostEvent& event, std::uint64_t generation) {
  submit_always([&event, generation] { event.wait_for(generation); });
}

void InlineStream::wait_for(HostEvent& event, std::uint64_t generation) { event.wait_for(generation); }

void BorrowedStream::go_on() {
  std::unique_lock lock(mutex_);
  while (done_ < submitted_) {
    Entry& entry = ring_[done_ % kRing];
    if (entry.event != nullptr) {
      state_ = State::kParked;  // from here on it may be resumed, by another thread
      lock.unlock();
      if (entry.event->park(*this, entry.generation)) return;
      lock.lock();
      state_ = State::kRunning;
    } else {
      run(lock, entry.task, entry.always);
    }
    finish_task(changed_);
  }
  state_ = State::kIdle;
  changed_.notify_all();  // under the lock: whoever sees the stream idle may destroy it
}

}  // namespace

std::unique_ptr<StreamImpl> make_host_stream(const StreamOptions& options) {
  require_teams_of(options.threads);
  if (options.execution == HostExecution::kInline) return std::make_unique<InlineStream>(options);
  if (options.execution == HostExecution::kBorrowed) return std::make_unique<BorrowedStream>();
  return std::make_unique<WorkerStream>(options);
}
std::shared_ptr<EventImpl> make_host_event(EventTiming timing) { return std::make_shared<HostEvent>(timing); }

}  // namespace pipeoptim::detail
