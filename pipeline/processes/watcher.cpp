#include "pipeline/processes/watcher.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <utility>

namespace pipeoptim {
namespace {

using namespace std::chrono_literals;

constexpr int kLookMs = 50;
// A failing process tells why; what its neighbours see of it (connections that end) comes first and says
// less. So trouble of the own work is told only when it has lasted.
constexpr int kPatience = 10;

}  // namespace

struct Watcher::Alarm {
  enum class Kind : std::int32_t { kFailure, kStop, kHold, kBegun, kLimit, kGoodbye };
  Kind kind = Kind::kGoodbye;
  std::int32_t rank = 0;    // kFailure: whose
  std::int64_t number = 0;  // kBegun, kLimit
  char text[1000] = {};
};

Watcher::Watcher(int rank, std::vector<Socket> alarms, std::function<std::string(int)> name,
                 std::function<bool()> stop_asked)
    : rank_(rank), name_(std::move(name)), stop_asked_(std::move(stop_asked)), begun_by_(alarms.size()) {
  for (Socket& socket : alarms) {
    peers_.emplace_back();
    peers_.back().here = static_cast<bool>(socket);
    peers_.back().socket = std::move(socket);
  }
  thread_ = std::thread([this] { run(); });
}

Watcher::~Watcher() {
  quit_ = true;
  thread_.join();
}

void Watcher::fail(const std::string& what) noexcept {
  const std::lock_guard lock(mutex_);
  if (failure_) return;
  failure_ = what;
  culprit_ = rank_;
}

std::optional<std::string> Watcher::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool Watcher::stopping() const {
  const std::lock_guard lock(mutex_);
  return holding_;
}

bool Watcher::admit(std::int64_t step, const std::function<void()>& waiting) {
  std::unique_lock lock(mutex_);
  while (holding_ && !limit_ && !failure_) {
    changed_.wait_for(lock, 1ms);
    lock.unlock();
    waiting();
    lock.lock();
  }
  if (limit_ && step >= *limit_) return false;
  begun_ = std::max(begun_, step + 1);
  return true;
}

void Watcher::watch(Watched* watched) {
  const std::lock_guard lock(watched_mutex_);
  watched_ = watched;
}

void Watcher::run() {
  try {
    while (!quit_) look();
    say_failure();
    if (!failure_sent_) tell({.kind = Alarm::Kind::kGoodbye, .rank = rank_});
  } catch (const std::exception& error) {
    fail(std::string("the watcher ended: ") + error.what());
  }
}

// Once: messages, the state of the own work, and what the main thread has asked for.
void Watcher::look() {
  entries_.clear();
  ranks_.clear();
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (!peers_[i].here) continue;
    entries_.push_back({peers_[i].socket.descriptor(), POLLIN, 0});
    ranks_.push_back(static_cast<int>(i));
  }
  ::poll(entries_.data(), entries_.size(), kLookMs);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].revents != 0) read(ranks_[i], peers_[static_cast<std::size_t>(ranks_[i])]);
  }
  look_at_work();
  say_failure();
  if (stop_asked_ && stop_asked_()) stop_wanted_ = true;
  if (!stop_wanted_ || stop_sent_) return;
  stop_sent_ = true;
  if (rank_ == 0) return begin_stop();
  tell({.kind = Alarm::Kind::kStop, .rank = rank_});
}

void Watcher::look_at_work() {
  const bool failed = failure().has_value();
  std::string trouble;
  {
    const std::lock_guard lock(watched_mutex_);
    if (!watched_) return;
    if (failed) return watched_->abandon();
    trouble = watched_->trouble();
  }
  complaints_ = trouble.empty() ? 0 : complaints_ + 1;
  if (complaints_ > kPatience) declare(trouble, rank_);
}

void Watcher::read(int rank, Peer& peer) {
  Alarm alarm;
  try {
    // A message is shorter than what a connection holds: whoever began it ends it.
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    receive_all(peer.socket, &alarm, sizeof(alarm), [&] {
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("no answer");
    });
  } catch (const std::runtime_error&) {
    return lose(rank);
  }
  handle(rank, alarm);
}

void Watcher::handle(int rank, const Alarm& alarm) {
  switch (alarm.kind) {
    case Alarm::Kind::kFailure:
      return declare(alarm.text, alarm.rank);
    case Alarm::Kind::kStop:
      return begin_stop();
    case Alarm::Kind::kHold: {
      std::int64_t begun = 0;
      {
        const std::lock_guard lock(mutex_);
        holding_ = true;
        begun = begun_;
      }
      return tell({.kind = Alarm::Kind::kBegun, .rank = rank_, .number = begun});
    }
    case Alarm::Kind::kBegun:
      begun_by_[static_cast<std::size_t>(rank)] = alarm.number;
      return settle_stop();
    case Alarm::Kind::kLimit: {
      const std::lock_guard lock(mutex_);
      limit_ = alarm.number;
      return changed_.notify_all();
    }
    case Alarm::Kind::kGoodbye:
      peers_[static_cast<std::size_t>(rank)].here = false;
      return settle_stop();
  }
}

void Watcher::lose(int rank) {
  peers_[static_cast<std::size_t>(rank)].here = false;
  declare("its process is gone", rank);
}

// The first failure is the one to tell, by rank 0 to all others.
void Watcher::declare(const std::string& text, int culprit) {
  const std::lock_guard lock(mutex_);
  if (failure_) return;
  culprit_ = culprit;
  failure_ = culprit == rank_ ? text : name_(culprit) + ": " + text;
  changed_.notify_all();
}

void Watcher::say_failure() {
  if (failure_sent_) return;
  Alarm alarm{.kind = Alarm::Kind::kFailure};
  {
    const std::lock_guard lock(mutex_);
    if (!failure_ || (rank_ != 0 && culprit_ != rank_)) return;
    alarm.rank = culprit_;
    // The receivers put the name in front themselves.
    const std::string front = name_(culprit_) + ": ";
    const std::size_t begin = failure_->rfind(front, 0) == 0 ? front.size() : 0;
    std::snprintf(alarm.text, sizeof(alarm.text), "%s", failure_->c_str() + begin);
  }
  failure_sent_ = true;
  tell(alarm, alarm.rank);
}

void Watcher::tell(const Alarm& alarm, int except) {
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    const int rank = static_cast<int>(i);
    if (!peers_[i].here || rank == except) continue;
    try {
      send_all(peers_[i].socket, &alarm, sizeof(alarm), [] { throw std::runtime_error("no answer"); });
    } catch (const std::runtime_error&) {
      if (alarm.kind != Alarm::Kind::kGoodbye) lose(rank);
    }
  }
}

// Rank 0: everybody holds and reports.
void Watcher::begin_stop() {
  {
    const std::lock_guard lock(mutex_);
    if (holding_) return;
    holding_ = true;
    begun_by_[0] = begun_;
  }
  tell({.kind = Alarm::Kind::kHold});
  settle_stop();
}

void Watcher::settle_stop() {
  if (rank_ != 0) return;
  std::int64_t limit = 0;
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (peers_[i].here && !begun_by_[i]) return;
    limit = std::max(limit, begun_by_[i].value_or(0));
  }
  {
    const std::lock_guard lock(mutex_);
    if (!holding_ || limit_) return;
    limit_ = limit;
    changed_.notify_all();
  }
  tell({.kind = Alarm::Kind::kLimit, .number = limit});
}

}  // namespace pipeoptim
