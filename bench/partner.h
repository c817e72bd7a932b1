// A second process of a benchmark, and how the two talk. It is a fork, so it is made before anything has
// started a thread or touched a device.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>

#include "kernels/runtime/error.h"
#include "pipeline/processes/socket.h"

namespace pipeoptim::bench {

// The project's sockets, which never wait in a call for longer than they should.
class ProjectLine {
 public:
  explicit ProjectLine(Socket socket) : socket_(std::move(socket)) {}
  void send(const void* data, std::size_t bytes) const {
    send_all(socket_, data, bytes, [] {});
  }
  void receive(void* data, std::size_t bytes) const {
    receive_all(socket_, data, bytes, [] {});
  }

 private:
  Socket socket_;
};

// Their ceiling: a stream socket whose calls block until all is done.
class PlainLine {
 public:
  explicit PlainLine(Socket socket) : socket_(std::move(socket)) {
    const int flags = fcntl(socket_.descriptor(), F_GETFL);
    if (fcntl(socket_.descriptor(), F_SETFL, flags & ~O_NONBLOCK) != 0) throw DeviceError("fcntl", "failed");
  }
  void send(const void* data, std::size_t bytes) const {
    require(::send(socket_.descriptor(), data, bytes, MSG_NOSIGNAL), bytes);
  }
  void receive(void* data, std::size_t bytes) const {
    require(::recv(socket_.descriptor(), data, bytes, MSG_WAITALL), bytes);
  }

 private:
  static void require(ssize_t moved, std::size_t bytes) {
    if (moved != static_cast<ssize_t>(bytes)) throw DeviceError("a plain socket", "ended early");
  }
  Socket socket_;
};

// What the second process is to take part in.
struct Order {
  enum Way : std::uint32_t { kEnd, kProjectLine, kPlainLine, kStages } way = kEnd;
  enum Pattern : std::uint32_t { kStream, kExchange } pattern = kStream;
  std::uint64_t bytes = 0, count = 0;
};

struct Lines {
  ProjectLine project;  // carries the orders, too
  PlainLine plain;
};

// The second process runs `serve` until that returns, which it does at the order to end.
class Partner {
 public:
  explicit Partner(void (*serve)(Lines&))
      : listener_(listen_on(0)), child_(start(serve)), lines_{ProjectLine(accept()), PlainLine(accept())} {}
  ~Partner() {
    end();
    { const Lines closed = std::move(lines_); }  // a partner that waits for a message sees the end
    waitpid(child_, nullptr, 0);
  }
  Partner(const Partner&) = delete;
  Partner& operator=(const Partner&) = delete;

  const Lines& lines() const { return lines_; }
  void order(const Order& order) const { lines_.project.send(&order, sizeof(order)); }
  void end() noexcept {
    if (std::exchange(ended_, true)) return;
    try {
      order({});
    } catch (const DeviceError& error) {
      std::fprintf(stderr, "the second process is gone: %s\n", error.what());
    }
  }

 private:
  static Deadline soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(10); }

  pid_t start(void (*serve)(Lines&)) {
    const pid_t child = fork();
    if (child < 0) throw DeviceError("fork", "no second process");
    if (child > 0) return child;
    int code = 0;
    try {
      const Address address{"127.0.0.1", port_of(listener_)};
      Lines lines{ProjectLine(connect(address)), PlainLine(connect(address))};
      serve(lines);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "the second process: %s\n", error.what());
      code = 1;
    }
    _exit(code);
  }

  static Socket connect(const Address& address) {
    std::string reason;
    Socket socket = connect_to(address, soon(), reason);
    if (!socket) throw DeviceError("connecting to the first process", reason);
    return socket;
  }
  Socket accept() const {
    Socket socket = accept_from(listener_, soon());
    if (!socket) throw DeviceError("the second process", "did not connect");
    return socket;
  }

  Socket listener_;
  pid_t child_;
  Lines lines_;
  bool ended_ = false;
};

}  // namespace pipeoptim::bench
