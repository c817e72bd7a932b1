// Ctrl-C (and a polite kill) as a flag: the first one asks to end in order, the next one ends at once. What
// was ignored before stays so.
#pragma once

#include <array>
#include <csignal>

namespace pipeoptim::app {

class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  static bool asked();

 private:
  std::array<struct sigaction, 2> before_;  // of SIGINT, SIGTERM
};

}  // namespace pipeoptim::app
