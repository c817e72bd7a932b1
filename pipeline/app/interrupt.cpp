#include "pipeline/app/interrupt.h"

#include <array>
#include <atomic>
#include <cstddef>

namespace pipeoptim::app {
namespace {

// Asked for in other threads, too.
std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "set in a signal handler");

constexpr std::array<int, 2> kSignals = {SIGINT, SIGTERM};

// Whichever of the signals that are not ignored comes next ends the program.
void note(int) {
  interrupted = true;
  struct sigaction ends {};
  ends.sa_handler = SIG_DFL;
  for (const int signal : kSignals) {
    struct sigaction now {};
    sigaction(signal, nullptr, &now);
    if (now.sa_handler == note) sigaction(signal, &ends, nullptr);
  }
}

}  // namespace

InterruptGuard::InterruptGuard() {
  interrupted = false;
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
  }
}

InterruptGuard::~InterruptGuard() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

bool InterruptGuard::asked() { return interrupted; }

}  // namespace pipeoptim::app
