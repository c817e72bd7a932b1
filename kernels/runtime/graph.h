// The work of one stream, captured once and launched as a whole any number of times: a CUDA graph. One launch
// then costs the host what a single kernel does.
#pragma once

#include <memory>
#include <utility>

#include "kernels/runtime/stream.h"

namespace pipeoptim {

namespace detail {

class GraphImpl {
 public:
  virtual ~GraphImpl() = default;
  virtual void launch(StreamImpl& stream) = 0;
};

}  // namespace detail

class Graph {
 public:
  // Calls issue(), which enqueues work on the stream and on no other; nothing of it runs. What it enqueues
  // keeps its arguments: addresses, and numbers. Libraries load and allocate when they run something for the
  // first time, so it should have run before. Throws std::logic_error on a host stream, what issue() throws,
  // and DeviceError where the work cannot be captured.
  template <typename Issue>
  static Graph capture(Stream& stream, const Issue& issue) {
    Capture capture(stream);
    issue();
    return capture.end();
  }

  // In the stream's order, like the work itself would be. The graph outlives the launches.
  void launch(Stream& stream) const { impl_->launch(*stream.impl_); }

 private:
  // From the beginning of a capture to its end, or to an exception that drops it.
  class Capture {
   public:
    explicit Capture(Stream& stream);
    ~Capture();
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;
    Graph end();

   private:
    Stream& stream_;
    bool open_ = true;
  };

  explicit Graph(std::unique_ptr<detail::GraphImpl> impl) : impl_(std::move(impl)) {}
  std::unique_ptr<detail::GraphImpl> impl_;
};

}  // namespace pipeoptim
