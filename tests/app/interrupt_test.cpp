// What the program does at signals: in processes of their own, which may die of them.
#include "pipeline/app/interrupt.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <utility>

namespace pipeoptim::app {
namespace {

// The wait status of a process that runs `body` and exits with what it returns.
template <typename Body>
int status_of(const Body& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

TEST(Interrupt, TheFirstSignalAsksAndAnySecondOneEnds) {
  for (const auto& [first, second] : {std::pair{SIGINT, SIGINT}, std::pair{SIGINT, SIGTERM}}) {
    const int status = status_of([first = first, second = second] {
      const InterruptGuard guard;
      raise(first);
      if (!InterruptGuard::asked()) return 1;
      raise(second);
      return 2;
    });
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    EXPECT_EQ(WTERMSIG(status), second);
  }
}

TEST(Interrupt, LeavesSignalsAsTheyWere) {
  const int status = status_of([] {
    signal(SIGINT, SIG_IGN);
    {
      const InterruptGuard guard;
      raise(SIGINT);  // as of a program in the background
      if (InterruptGuard::asked()) return 1;
      raise(SIGTERM);
      if (!InterruptGuard::asked()) return 2;
      raise(SIGINT);
    }
    raise(SIGINT);
    return 0;
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace pipeoptim::app
