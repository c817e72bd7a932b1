// What the processes tell each other beside their work: that one has failed or is gone, and where to stop.
// One thread a process, connected with that of rank 0. Private to pipeline/processes.
#pragma once

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "pipeline/processes/process_group.h"
#include "pipeline/processes/socket.h"

namespace pipeoptim {

// Stopping: somebody asks, all hold before their next mini-batch and report how many they have begun, rank 0
// names the largest number, and all go on to just there. So nobody waits for a message that is never sent.
class Watcher {
 public:
  // `name` is that of a rank in messages.
  Watcher(int rank, std::vector<Socket> alarms, std::function<std::string(int)> name,
          std::function<bool()> stop_asked);
  // Says goodbye, or why this process failed.
  ~Watcher();
  Watcher(const Watcher&) = delete;
  Watcher& operator=(const Watcher&) = delete;

  void fail(const std::string& what) noexcept;
  std::optional<std::string> failure() const;
  void request_stop() { stop_wanted_ = true; }
  bool stopping() const;
  bool admit(std::int64_t step, const std::function<void()>& waiting);
  void watch(Watched* watched);

 private:
  struct Alarm;
  struct Peer {
    Socket socket;
    bool here = false;
  };

  void run();
  void look();
  void look_at_work();
  void read(int rank, Peer& peer);
  void handle(int rank, const Alarm& alarm);
  void lose(int rank);
  void tell(const Alarm& alarm, int except = -1);
  void declare(const std::string& text, int culprit);
  void say_failure();
  void begin_stop();
  void settle_stop();

  const int rank_;
  const std::function<std::string(int)> name_;
  const std::function<bool()> stop_asked_;
  std::vector<Peer> peers_;  // by rank with rank 0, elsewhere rank 0 alone; the thread's own
  int complaints_ = 0;       // looks at work that has failed, in a row; the thread's own
  bool stop_sent_ = false, failure_sent_ = false;
  std::vector<pollfd> entries_;                        // for one look: of the peers that are here
  std::vector<int> ranks_;                             // theirs
  std::vector<std::optional<std::int64_t>> begun_by_;  // rank 0's

  std::atomic<bool> quit_ = false, stop_wanted_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::string> failure_;  // of anybody: the first that is known here
  int culprit_ = -1;
  bool holding_ = false;
  std::int64_t begun_ = 0;  // mini-batches, since the start of training
  std::optional<std::int64_t> limit_;

  std::mutex watched_mutex_;
  Watched* watched_ = nullptr;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace pipeoptim
