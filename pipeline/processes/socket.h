// TCP between the processes of one run: small, blocking for the caller, never longer than it allows.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace pipeoptim {

using Deadline = std::chrono::steady_clock::time_point;

struct Address {
  std::string host;
  std::uint16_t port = 0;
};
std::string to_string(const Address& address);

// Owns a socket, which never blocks by itself: the functions below wait for it. Move-only.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  ~Socket();
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept;

  int descriptor() const { return descriptor_; }
  explicit operator bool() const { return descriptor_ >= 0; }

 private:
  int descriptor_ = -1;
};

// On all interfaces; port 0 takes a free one. Throws DeviceError, naming the port, when it cannot be had.
Socket listen_on(std::uint16_t port);
std::uint16_t port_of(const Socket& listener);

// The next connection, or an empty socket when the time is over.
Socket accept_from(const Socket& listener, Deadline deadline);

// One attempt. An empty socket, and the reason, when nobody answers in time.
Socket connect_to(const Address& address, Deadline deadline, std::string& reason);

// Sends or receives all bytes. Calls `waiting` now and then while it waits (it may throw to end that). Throws
// DeviceError when the connection ends, with "closed by the other side" where it was.
void send_all(const Socket& socket, const void* data, std::size_t bytes,
              const std::function<void()>& waiting);
void receive_all(const Socket& socket, void* data, std::size_t bytes, const std::function<void()>& waiting);

}  // namespace pipeoptim
