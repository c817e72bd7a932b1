#include "pipeline/processes/rendezvous.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "kernels/runtime/error.h"
#include "pipeline/processes/mpi_meeting.h"

namespace pipeoptim {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::uint64_t kMagic = 0x706f2d72656e6431;  // of this protocol
constexpr auto kRetry = 20ms;
constexpr auto kHandshake = 2s;  // for somebody who connects and then says nothing

enum class Kind : std::uint32_t { kCalls, kAlarms };

// What a process says first, and what rank 0 answers: an empty text is a welcome. Same machine type on all
// sides: with another byte order the magic number is not recognised.
struct Hello {
  std::uint64_t magic = kMagic;
  std::uint64_t token = 0;  // of the meeting file, so that nobody ends up in another run
  std::int32_t rank = 0, size = 0;
  Kind kind = Kind::kCalls;
  std::uint32_t reserved = 0;
};
struct Answer {
  char refusal[200] = {};
};

struct TimeIsOver : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// For send_all and receive_all.
auto until(Deadline deadline) {
  return [deadline] {
    if (Clock::now() >= deadline) throw TimeIsOver("no answer");
  };
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

std::string seconds(std::chrono::milliseconds limit) {
  return std::to_string((limit.count() + 999) / 1000) + " s";
}

// Where rank 0 listens, and what a process of its run knows.
struct Announcement {
  Address address;
  std::uint64_t token = 0;
};

std::string to_text(const Announcement& announcement) {
  std::ostringstream text;
  text << kMagic << ' ' << announcement.address.host << ' ' << announcement.address.port << ' '
       << announcement.token << '\n';
  return text.str();
}

// False where there is none, or no complete one.
bool read_announcement(std::istream& text, Announcement& announcement) {
  std::uint64_t magic = 0;
  Address& address = announcement.address;
  if (!(text >> magic >> address.host >> address.port >> announcement.token) || magic != kMagic) return false;
  if (address.host == host_name()) address.host = "127.0.0.1";  // no name service needed
  return true;
}

// The file of rank 0, there while others may read it.
class MeetingFile {
 public:
  MeetingFile(std::string path, const Announcement& announcement) : path_(std::move(path)) {
    if (path_.empty()) return;
    const std::string temporary = path_ + ".part" + std::to_string(getpid());
    std::ofstream file(temporary);
    file << to_text(announcement);
    file.close();
    if (file && std::rename(temporary.c_str(), path_.c_str()) == 0) return;
    const std::string reason = std::generic_category().message(errno);
    static_cast<void>(std::remove(temporary.c_str()));
    throw DeviceError("writing the meeting file " + path_, reason);
  }
  ~MeetingFile() {
    if (!path_.empty()) static_cast<void>(std::remove(path_.c_str()));
  }
  MeetingFile(const MeetingFile&) = delete;
  MeetingFile& operator=(const MeetingFile&) = delete;

 private:
  std::string path_;
};

// Rank 0: everybody's connections, as they come.
class Host {
 public:
  Host(const ProcessIdentity& identity, std::uint64_t token) : size_(identity.size), token_(token) {
    connections_.calls.resize(static_cast<std::size_t>(size_));
    connections_.alarms.resize(static_cast<std::size_t>(size_));
  }

  Connections gather(const Socket& listener, const std::string& place, std::chrono::milliseconds limit) {
    const Deadline deadline = Clock::now() + limit;
    for (int missing = 2 * (size_ - 1); missing > 0;) {
      Socket socket = accept_from(listener, deadline);
      if (!socket) {
        throw DeviceError("rendezvous at " + place, "not all processes came within " + seconds(limit) +
                                                        "; missing: " + missing_ranks());
      }
      if (welcome(std::move(socket))) --missing;
    }
    return std::move(connections_);
  }

 private:
  // Who is no process of this run at all is left alone.
  bool welcome(Socket socket) {
    try {
      Hello hello;
      receive_all(socket, &hello, sizeof(hello), until(Clock::now() + kHandshake));
      if (hello.magic != kMagic || hello.token != token_) return false;
      const std::string refusal = refusal_of(hello);
      Answer answer;
      std::snprintf(answer.refusal, sizeof(answer.refusal), "%s", refusal.c_str());
      send_all(socket, &answer, sizeof(answer), until(Clock::now() + kHandshake));
      if (!refusal.empty()) return false;
      place_of(hello) = std::move(socket);
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  }

  std::string refusal_of(const Hello& hello) {
    if (hello.size != size_) {
      return "rank 0 expects " + std::to_string(size_) + " processes, rank " + std::to_string(hello.rank) +
             " expects " + std::to_string(hello.size);
    }
    if (hello.rank < 1 || hello.rank >= size_) return "no rank " + std::to_string(hello.rank);
    if (place_of(hello)) return "rank " + std::to_string(hello.rank) + " is there already";
    return {};
  }

  Socket& place_of(const Hello& hello) {
    auto& sockets = hello.kind == Kind::kCalls ? connections_.calls : connections_.alarms;
    return sockets[static_cast<std::size_t>(hello.rank)];
  }

  std::string missing_ranks() const {
    std::string text;
    for (int rank = 1; rank < size_; ++rank) {
      const auto at = static_cast<std::size_t>(rank);
      if (connections_.calls[at] && connections_.alarms[at]) continue;
      text += (text.empty() ? "rank " : ", rank ") + std::to_string(rank);
    }
    return text;
  }

  int size_;
  std::uint64_t token_;
  Connections connections_;
};

// Another rank: tries until rank 0 listens. A meeting file of an earlier run may still lie there: it is read
// anew for each attempt.
Socket join(const ProcessIdentity& identity, const MeetingPlace& place, Announcement announcement, Kind kind,
            std::chrono::milliseconds limit) {
  const Deadline deadline = Clock::now() + limit;
  const auto is_known = [&] {
    if (place.file.empty()) return true;
    std::ifstream file(place.file);
    return read_announcement(file, announcement);
  };
  std::string reason = "there is no file " + place.file;
  do {
    if (is_known()) {
      const Hello hello{
          .token = announcement.token, .rank = identity.rank, .size = identity.size, .kind = kind};
      Answer answer;
      try {
        Socket socket =
            connect_to(announcement.address, std::min(deadline, Clock::now() + kHandshake), reason);
        if (socket) {
          send_all(socket, &hello, sizeof(hello), until(deadline));
          receive_all(socket, &answer, sizeof(answer), until(deadline));
          answer.refusal[sizeof(answer.refusal) - 1] = '\0';
          if (answer.refusal[0] == '\0') return socket;
        }
      } catch (const std::runtime_error& error) {
        reason = error.what();
      }
      if (answer.refusal[0] != '\0') throw DeviceError("rendezvous", answer.refusal);
    }
    std::this_thread::sleep_for(kRetry);
  } while (Clock::now() < deadline);
  const std::string where =
      place.by_mpi ? to_string(announcement.address) + ", sent by MPI" : to_string(place);
  throw DeviceError("rendezvous at " + where, "rank " + std::to_string(identity.rank) +
                                                  " did not reach rank 0 within " + seconds(limit) + " (" +
                                                  reason + ")");
}

// What rank 0 announces by MPI; the place's address where it does not.
Announcement await_announcement(const ProcessIdentity& identity, const MeetingPlace& place) {
  Announcement announcement{.address = place.address};
  if (!place.by_mpi) return announcement;
  std::istringstream text(broadcast_by_mpi(identity, {}));
  if (!read_announcement(text, announcement))
    throw DeviceError("rendezvous by MPI", "rank 0 sent no address");
  return announcement;
}

}  // namespace

Connections meet(const ProcessIdentity& identity, const MeetingPlace& place,
                 std::chrono::milliseconds time_limit) {
  if (identity.rank > 0) {
    const Announcement announcement = await_announcement(identity, place);
    Connections connections;
    connections.calls.push_back(join(identity, place, announcement, Kind::kCalls, time_limit));
    connections.alarms.push_back(join(identity, place, announcement, Kind::kAlarms, time_limit));
    return connections;
  }
  const Socket listener = listen_on(place.address.port);
  Announcement announcement{.address = {host_name(), port_of(listener)}};
  if (place.by_mpi || !place.file.empty()) {
    std::random_device random;
    announcement.token = (std::uint64_t{random()} << 32) | random();
  }
  const MeetingFile file(place.file, announcement);
  if (place.by_mpi) broadcast_by_mpi(identity, to_text(announcement));
  return Host(identity, announcement.token).gather(listener, to_string(place), time_limit);
}

}  // namespace pipeoptim
