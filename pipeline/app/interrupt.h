// Ctrl-C (and a polite kill) as a flag: the first one asks to end in order, the next one ends at once.
#pragma once

namespace pipeoptim::app {

class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  static bool asked();
};

}  // namespace pipeoptim::app
