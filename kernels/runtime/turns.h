// Arguments of work that is enqueued once, as a graph, and repeated with others each time.
//
//   turns.post(stream, arguments)   each time, from the host, before the work
//   turns.take(stream)              in the work, first: now() becomes what was posted for this time
//
// In between lies a ring in pinned memory. Both sides count: the host what it has posted, a counter in the
// device's memory what was taken.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim {

namespace detail {

class TurnRing {
 public:
  static constexpr std::int64_t kEntries = 32;

  TurnRing(Device device, std::int64_t words);
  void restart(Stream& stream);
  void post(Stream& stream, const void* arguments);
  void take(Stream& stream);
  const std::uint32_t* now() const { return now_.data(); }

 private:
  static constexpr std::int64_t kHalf = kEntries / 2;

  std::int64_t words_;  // of an entry
  Buffer<std::uint32_t> posted_, now_;
  Buffer<std::int64_t> taken_;  // one counter
  std::int64_t next_ = 0;
  std::array<Event, 2> half_taken_;
};

}  // namespace detail

// Of one stream.
template <typename Arguments>
class Turns {
  static_assert(std::is_trivially_copyable_v<Arguments>);
  static_assert(sizeof(Arguments) % sizeof(std::uint32_t) == 0);

 public:
  explicit Turns(Device device) : ring_(device, sizeof(Arguments) / sizeof(std::uint32_t)) {}

  // Whatever was posted is forgotten; the stream's work is done.
  void restart(Stream& stream) { ring_.restart(stream); }
  // Work that takes these arguments has to follow before the next are posted. Waits where the work is half a
  // ring behind, no longer than for the older half of it.
  void post(Stream& stream, const Arguments& arguments) { ring_.post(stream, &arguments); }
  void take(Stream& stream) { ring_.take(stream); }
  // In the device's memory, the same address always.
  const Arguments* now() const { return reinterpret_cast<const Arguments*>(ring_.now()); }

 private:
  detail::TurnRing ring_;
};

}  // namespace pipeoptim
