#include <cstring>

#include "kernels/runtime/launch.h"
#include "kernels/runtime/turns.h"

namespace pipeoptim::detail {
namespace {

struct LaterOf {
  PO_HD std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a < b ? b : a; }
};

// now <- the entry whose turn it is. One row.
struct TakeTurn {
  using LongRows = void;  // the words' loads go to host memory: all at once
  const std::uint32_t* posted;
  std::int64_t words;
  std::uint32_t* now;
  std::int64_t* taken;

  template <typename Team>
  PO_HD void operator()(std::int64_t, const Team& team) const {
    const std::int64_t turn = team.reduce(*taken, LaterOf{});  // all have read it before one moves it on
    const std::uint32_t* const entry = posted + turn % TurnRing::kEntries * words;
    for (std::int64_t i = team.rank(); i < words; i += team.size()) now[i] = entry[i];
    if (team.rank() == 0) *taken = turn + 1;
  }
};

}  // namespace

TurnRing::TurnRing(Device device, std::int64_t words)
    : words_(words),
      posted_(device, static_cast<std::size_t>(kEntries * words), MemoryKind::kPinned),
      now_(device, static_cast<std::size_t>(words)),
      taken_(device, 1),
      half_taken_{Event(device), Event(device)} {}

void TurnRing::restart(Stream& stream) {
  next_ = 0;
  stream.fill_zero(taken_.data(), sizeof(std::int64_t));
}

// An entry is written again only when the work that takes it is done. The ring is reused by halves: the first
// post into one records an event behind all work that took the other's entries, and waits for the event that
// the other's first post recorded behind the work of this one.
void TurnRing::post(Stream& stream, const void* arguments) {
  const std::int64_t entry = next_++ % kEntries;
  if (entry % kHalf == 0) {
    const auto half = static_cast<std::size_t>(entry / kHalf);
    stream.record(half_taken_[1 - half]);
    half_taken_[half].synchronize();
  }
  std::memcpy(posted_.data() + entry * words_, arguments,
              static_cast<std::size_t>(words_) * sizeof(std::uint32_t));
}

void TurnRing::take(Stream& stream) {
  for_each_row(stream, 1, words_, TakeTurn{posted_.data(), words_, now_.data(), taken_.data()});
}

}  // namespace pipeoptim::detail
