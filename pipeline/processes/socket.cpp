#include "pipeline/processes/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "kernels/runtime/error.h"

namespace pipeoptim {
namespace {

constexpr int kSliceMs = 50;  // between two looks at the clock, or at what else may have happened

std::string reason_of(int error) { return std::generic_category().message(error); }

void set(int descriptor, int level, int option, int value) {
  static_cast<void>(setsockopt(descriptor, level, option, &value, sizeof(value)));
}

// Does not wait in calls; small messages leave at once; a machine that is gone is noticed within half a
// minute.
void prepare(int descriptor) {
  static_cast<void>(fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK));
  set(descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
  set(descriptor, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(descriptor, IPPROTO_TCP, TCP_KEEPCNT, 4);
}

int milliseconds_until(Deadline deadline) {
  const auto left = deadline - std::chrono::steady_clock::now();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
  return static_cast<int>(std::clamp<std::int64_t>(ms, 0, kSliceMs));
}

bool ready(int descriptor, short events, int ms) {
  pollfd entry{descriptor, events, 0};
  return ::poll(&entry, 1, ms) > 0;
}

bool passing(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

using Resolved = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Resolved resolve(const Address& address, std::string& reason) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (error != 0) reason = gai_strerror(error);
  return {error == 0 ? found : nullptr, &freeaddrinfo};
}

Socket try_connect(const addrinfo& entry, Deadline deadline, std::string& reason) {
  Socket socket(::socket(entry.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) {
    reason = reason_of(errno);
    return {};
  }
  prepare(socket.descriptor());
  int error = ::connect(socket.descriptor(), entry.ai_addr, entry.ai_addrlen) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    while (!ready(socket.descriptor(), POLLOUT, milliseconds_until(deadline))) {
      if (std::chrono::steady_clock::now() < deadline) continue;
      reason = "no answer";
      return {};
    }
    socklen_t size = sizeof(error);
    getsockopt(socket.descriptor(), SOL_SOCKET, SO_ERROR, &error, &size);
  }
  if (error == 0) return socket;
  reason = reason_of(error);
  return {};
}

}  // namespace

std::string to_string(const Address& address) { return address.host + ":" + std::to_string(address.port); }

Socket::~Socket() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

Socket listen_on(std::uint16_t port) {
  Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) throw DeviceError("socket", reason_of(errno));
  set(socket.descriptor(), SOL_SOCKET, SO_REUSEADDR, 1);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_ANY);
  any.sin_port = htons(port);
  if (::bind(socket.descriptor(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)) != 0 ||
      ::listen(socket.descriptor(), SOMAXCONN) != 0) {
    throw DeviceError("listening on port " + std::to_string(port), reason_of(errno));
  }
  prepare(socket.descriptor());
  return socket;
}

std::uint16_t port_of(const Socket& listener) {
  sockaddr_in name{};
  socklen_t size = sizeof(name);
  if (getsockname(listener.descriptor(), reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    throw DeviceError("getsockname", reason_of(errno));
  }
  return ntohs(name.sin_port);
}

Socket accept_from(const Socket& listener, Deadline deadline) {
  while (true) {
    const int descriptor = ::accept4(listener.descriptor(), nullptr, nullptr, SOCK_CLOEXEC);
    if (descriptor >= 0) {
      prepare(descriptor);
      return Socket(descriptor);
    }
    if (!passing(errno) && errno != ECONNABORTED) throw DeviceError("accept", reason_of(errno));
    if (std::chrono::steady_clock::now() >= deadline) return {};
    ready(listener.descriptor(), POLLIN, milliseconds_until(deadline));
  }
}

Socket connect_to(const Address& address, Deadline deadline, std::string& reason) {
  const Resolved found = resolve(address, reason);
  for (const addrinfo* entry = found.get(); entry != nullptr; entry = entry->ai_next) {
    Socket socket = try_connect(*entry, deadline, reason);
    if (socket) return socket;
  }
  return {};
}

void send_all(const Socket& socket, const void* data, std::size_t bytes,
              const std::function<void()>& waiting) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(socket.descriptor(), at, bytes, MSG_NOSIGNAL);
    if (sent > 0) {
      at += sent;
      bytes -= static_cast<std::size_t>(sent);
      continue;
    }
    if (!passing(errno)) throw DeviceError("send", reason_of(errno));
    if (!ready(socket.descriptor(), POLLOUT, kSliceMs)) waiting();
  }
}

void receive_all(const Socket& socket, void* data, std::size_t bytes, const std::function<void()>& waiting) {
  auto* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::recv(socket.descriptor(), at, bytes, 0);
    if (got > 0) {
      at += got;
      bytes -= static_cast<std::size_t>(got);
      continue;
    }
    if (got == 0) throw DeviceError("receive", "closed by the other side");
    if (!passing(errno)) throw DeviceError("receive", reason_of(errno));
    if (!ready(socket.descriptor(), POLLIN, kSliceMs)) waiting();
  }
}

}  // namespace pipeoptim
