// Every repetition of some work takes what was posted for it, however far the host is ahead.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/turns.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

struct Arguments {
  std::int32_t number = 0;
  float values[300] = {};
};

Arguments arguments_of(int turn) {
  Arguments arguments{.number = turn};
  for (std::size_t i = 0; i < std::size(arguments.values); ++i) {
    arguments.values[i] = static_cast<float>(1000 * turn) + static_cast<float>(i);
  }
  return arguments;
}

class TurnsContract : public BackendTest {
 protected:
  static constexpr int kTurns = 150;  // several times as many as the ring holds

  void post_and_take() {
    for (int turn = 0; turn < kTurns; ++turn) {
      turns_.post(stream_, arguments_of(turn));
      turns_.take(stream_);
      stream_.copy(taken_.data() + turn, turns_.now(), sizeof(Arguments));
    }
  }
  void expect_all() {
    stream_.synchronize();
    for (int turn = 0; turn < kTurns; ++turn) {
      const Arguments expected = arguments_of(turn), &taken = taken_.data()[turn];
      ASSERT_EQ(taken.number, turn);
      for (std::size_t i = 0; i < std::size(taken.values); ++i)
        ASSERT_EQ(taken.values[i], expected.values[i]);
    }
  }

  Stream stream_{device()};
  Turns<Arguments> turns_{device()};
  Buffer<Arguments> taken_{device(), kTurns, MemoryKind::kPinned};
};

INSTANTIATE_TEST_SUITE_P(Backends, TurnsContract, testing::ValuesIn(built_backends()), backend_name);

TEST_P(TurnsContract, EachTakesItsOwn) {
  post_and_take();
  expect_all();
}

TEST_P(TurnsContract, ARestartForgetsWhatNobodyTook) {
  for (int turn = 0; turn < 5; ++turn) {
    turns_.post(stream_, arguments_of(-1));
    turns_.take(stream_);
  }
  turns_.post(stream_, arguments_of(-2));
  stream_.synchronize();
  turns_.restart(stream_);
  post_and_take();
  expect_all();
}

}  // namespace
}  // namespace pipeoptim::test
