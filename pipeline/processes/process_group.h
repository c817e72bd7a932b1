// The processes of one run, on the side of the host: who there is, what they exchange outside of training,
// and that none of them waits for one that has failed.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pipeline/processes/identity.h"

namespace pipeoptim {

// What a process has under way with its neighbours. Called from the group's watcher.
class Watched {
 public:
  virtual ~Watched() = default;
  // Empty: all is well.
  virtual std::string trouble() noexcept = 0;
  // Somebody has failed: ends what is under way, so that the host waits for it no longer. May come twice.
  virtual void abandon() noexcept = 0;
};

struct ProcessGroupOptions {
  ProcessIdentity identity;
  MeetingPlace place;
  std::chrono::milliseconds time_limit = std::chrono::minutes(1);  // to find each other
  std::function<std::string(int)> name = {};  // of a rank, for messages; default "rank 2"
  std::function<bool()> stop_asked = {};      // asked now and then, in another thread
};

// Collective calls (all ranks, same order, one thread each) throw DeviceError, naming rank and reason, when a
// process has failed or is gone.
class ProcessGroup {
 public:
  // Blocks until all processes are there; throws DeviceError, see meet().
  explicit ProcessGroup(ProcessGroupOptions options);
  // The others go on without this process, unless fail() was called or an exception is on its way.
  ~ProcessGroup();

  int rank() const;
  int size() const;
  std::string name(int rank) const;

  using Bytes = std::vector<std::byte>;
  std::vector<Bytes> all_gather(std::span<const std::byte> mine);  // by rank
  std::vector<Bytes> gather(std::span<const std::byte> mine);      // with rank 0; elsewhere nothing
  void barrier() { all_gather({}); }

  // This process cannot go on: the others end with a DeviceError that quotes it. Only the first call counts.
  void fail(const std::string& what) noexcept;
  bool failed() const;  // this process or, as far as is known, another one
  void throw_if_failed() const;

  // Asks all to end after the same mini-batch, soon.
  void request_stop();
  // Whether somebody has asked. Different ranks learn of it at different times.
  bool stopping() const;
  // Before this process begins the mini-batch `step`: false where all end before it. While a stop is being
  // agreed upon it blocks and calls `waiting`.
  bool admit(std::int64_t step, const std::function<void()>& waiting);

  // One at a time; null: none. Returns when the former one is no longer in use.
  void watch(Watched* watched);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pipeoptim
