// What streams, events and memory promise, on every backend.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/error.h"
#include "kernels/runtime/stream.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

using RuntimeContract = BackendTest;

INSTANTIATE_TEST_SUITE_P(Backends, RuntimeContract, testing::ValuesIn(built_backends()), backend_name);

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

TEST_P(RuntimeContract, TasksRunInOrder) {
  constexpr int kTasks = 1000;  // more than any queue holds
  std::vector<int> seen(kTasks);
  int count = 0;
  Stream stream(device());
  for (int task = 0; task < kTasks; ++task) {
    stream.submit([&seen, &count, task] { seen[static_cast<std::size_t>(count++)] = task; });
  }
  stream.synchronize();
  std::vector<int> expected(kTasks);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(seen, expected);
}

TEST_P(RuntimeContract, SubmittedTasksAreCopies) {
  int result = 0;
  Stream stream(device());
  {
    int value = 7;
    Task task = [value, to = &result] { *to = value; };
    stream.submit(task);
    value = 8;
    task = [value, to = &result] { *to = 10 * *to + value; };
    stream.submit(task);
  }
  stream.synchronize();
  EXPECT_EQ(result, 78);
}

TEST_P(RuntimeContract, WaitOrdersStreams) {
  std::atomic<int> value = 0;
  int seen = -1;
  Stream first(device());
  Stream second(device());
  Event written(device());
  first.submit([to = &value] {
    pause();
    *to = 1;
  });
  first.record(written);
  second.wait(written);
  second.submit([from = &value, to = &seen] { *to = *from; });
  second.synchronize();
  EXPECT_EQ(seen, 1);
  EXPECT_TRUE(written.done());
}

TEST_P(RuntimeContract, AnEventIsReusedManyTimes) {
  constexpr int kRounds = 300;
  int written = 0;
  int wrong = 0;
  Stream producer(device());
  Stream consumer(device());
  Event full(device());
  Event empty(device());
  for (int round = 1; round <= kRounds; ++round) {
    producer.wait(empty);
    producer.submit([to = &written, round] { *to = round; });
    producer.record(full);
    consumer.wait(full);
    consumer.submit([from = &written, to = &wrong, round] { *to += *from == round ? 0 : 1; });
    consumer.record(empty);
  }
  consumer.synchronize();
  EXPECT_EQ(wrong, 0);
}

TEST_P(RuntimeContract, AWaitIsForTheLatestRecord) {
  int value = 0;
  int seen = 0;
  Stream first(device());
  Stream second(device());
  Event event(device());
  first.record(event);
  first.submit([to = &value] {
    pause();
    *to = 2;
  });
  first.record(event);
  second.wait(event);
  second.submit([from = &value, to = &seen] { *to = *from; });
  second.synchronize();
  EXPECT_EQ(seen, 2);
}

TEST_P(RuntimeContract, AnEventThatWasNeverRecordedIsDone) {
  Event event(device());
  EXPECT_TRUE(event.done());
  event.synchronize();
  Stream stream(device());
  stream.wait(event);
  stream.synchronize();
}

TEST_P(RuntimeContract, EventSynchronizeWaits) {
  std::atomic<int> value = 0;
  Stream stream(device());
  Event event(device());
  stream.submit([to = &value] {
    pause();
    *to = 1;
  });
  stream.record(event);
  const Event same_point = event;
  same_point.synchronize();
  EXPECT_EQ(value, 1);
  EXPECT_TRUE(event.done());
}

TEST_P(RuntimeContract, TimingIsOptional) {
  Stream stream(device());
  Event begin(device(), EventTiming::kOn);
  Event end(device(), EventTiming::kOn);
  const Event untimed(device());
  stream.record(begin);
  stream.submit([] { pause(); });
  stream.record(end);
  stream.synchronize();
  EXPECT_GE(end.milliseconds_since(begin), 0);
  EXPECT_THROW(static_cast<void>(end.milliseconds_since(untimed)), std::logic_error);
}

TEST_P(RuntimeContract, TheFirstErrorIsKeptAndLaterTasksAreSkipped) {
  int runs = 0;
  Stream stream(device());
  Stream waiting(device());
  Event event(device());
  stream.submit([] { throw std::runtime_error("first"); });
  stream.submit([to = &runs] { ++*to; });
  stream.submit([] { throw std::runtime_error("second"); });
  stream.record(event);
  waiting.wait(event);
  EXPECT_NO_THROW(waiting.synchronize()) << "events complete behind an error";
  for (int time = 0; time < 2; ++time) {
    try {
      stream.synchronize();
      ADD_FAILURE() << "synchronize did not rethrow";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "first");
    }
  }
  EXPECT_THROW(stream.throw_if_failed(), std::runtime_error);
  EXPECT_EQ(runs, 0);
}

TEST_P(RuntimeContract, TheDestructorWaitsAndDropsErrors) {
  std::atomic<int> value = 0;
  {
    Stream stream(device());
    stream.submit([to = &value] {
      pause();
      *to = 1;
    });
    stream.submit([] { throw std::runtime_error("dropped"); });
  }
  EXPECT_EQ(value, 1);
}

TEST_P(RuntimeContract, ThrowIfFailedDoesNotWait) {
  std::atomic<bool> go = false;
  Stream stream(device());
  EXPECT_NO_THROW(stream.throw_if_failed());
  stream.submit([from = &go] { *from = true; });
  EXPECT_NO_THROW(stream.throw_if_failed());
  stream.synchronize();
  EXPECT_TRUE(go);
}

TEST_P(RuntimeContract, StreamsMove) {
  int value = 0;
  Stream first(device());
  Stream second = std::move(first);
  second.submit([to = &value] { *to = 3; });
  second.synchronize();
  EXPECT_EQ(value, 3);
  EXPECT_EQ(second.device(), device());
  EXPECT_EQ(second.native() != nullptr, GetParam() == Backend::kCuda);
}

TEST_P(RuntimeContract, MemoryIsZeroedAndAligned) {
  for (const std::size_t bytes :
       {std::size_t{1}, std::size_t{63}, std::size_t{1} << 20, std::size_t{3000001}}) {
    for (const MemoryKind kind : {MemoryKind::kDevice, MemoryKind::kPinned}) {
      const std::int64_t before = allocation_count();
      const Memory memory(device(), bytes, kind);
      EXPECT_EQ(allocation_count(), before + 1);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment, 0U);
      std::vector<unsigned char> values(bytes, 0xFF);
      copy_to_host(values.data(), memory.data(), bytes, device());
      EXPECT_EQ(values, std::vector<unsigned char>(bytes, 0));
    }
  }
}

TEST_P(RuntimeContract, MemoryThatIsNotThereIsADeviceError) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer ends the program at such a request";
#endif
  constexpr std::size_t kTooMuch = std::size_t{1} << 60;
  try {
    const Memory memory(device(), kTooMuch);
    ADD_FAILURE() << "allocated an exbibyte";
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find(std::to_string(kTooMuch)), std::string::npos) << error.what();
  }
  const Memory next(device(), 16);  // the refusal leaves nothing behind
  EXPECT_NE(next.data(), nullptr);
}

TEST_P(RuntimeContract, NoMemoryForZeroBytes) {
  const Memory memory(device(), 0);
  EXPECT_EQ(memory.data(), nullptr);
  EXPECT_FALSE(memory);
}

TEST_P(RuntimeContract, CopiesAreStreamOrdered) {
  constexpr std::size_t kElements = 10000;
  constexpr std::size_t kBytes = kElements * sizeof(int);
  Buffer<int> from(device(), kElements, MemoryKind::kPinned);
  Buffer<int> middle(device(), kElements);
  Buffer<int> behind(device(), kElements);
  Buffer<int> to(device(), kElements, MemoryKind::kPinned);
  std::iota(from.data(), from.data() + kElements, 1);
  Stream first(device());
  Stream second(device());
  Event copied(device());
  first.copy(middle.data(), from.data(), kBytes);
  first.record(copied);
  second.wait(copied);
  second.copy(behind.data(), middle.data(), kBytes);
  second.fill_zero(behind.data(), 10 * sizeof(int));
  second.copy(to.data(), behind.data(), kBytes);
  second.copy(nullptr, nullptr, 0);
  second.synchronize();
  for (std::size_t i = 0; i < kElements; ++i) {
    ASSERT_EQ(to.data()[i], i < 10 ? 0 : static_cast<int>(i) + 1) << i;
  }
}

// Several threads share what is long.
TEST_P(RuntimeContract, LongCopiesAndFillsAreWhole) {
  for (const std::size_t bytes : {std::size_t{65535}, std::size_t{65536}, std::size_t{200001}}) {
    Buffer<unsigned char> from(device(), bytes, MemoryKind::kPinned);
    Buffer<unsigned char> middle(device(), bytes), to(device(), bytes + 1, MemoryKind::kPinned);
    for (std::size_t i = 0; i < bytes; ++i) from.data()[i] = static_cast<unsigned char>(i % 251);
    to.data()[bytes] = 255;  // behind the end
    Stream stream(device(), {.threads = 3});
    stream.copy(middle.data(), from.data(), bytes);
    stream.copy(to.data(), middle.data(), bytes);
    stream.synchronize();
    for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(to.data()[i], i % 251) << i << " of " << bytes;
    EXPECT_EQ(to.data()[bytes], 255);
    stream.fill_zero(to.data(), bytes);
    stream.synchronize();
    for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(to.data()[i], 0) << i << " of " << bytes;
    EXPECT_EQ(to.data()[bytes], 255);
  }
}

TEST_P(RuntimeContract, BlockingCopiesGoBothWays) {
  const std::vector<float> values = {1, 2, 3};
  EXPECT_EQ(on_host(on_device(values)), values);
}

TEST_P(RuntimeContract, DevicesThatAreNotThereAreNamed) {
  const Device missing{GetParam(), 1000};
  try {
    const Stream stream(missing);
    ADD_FAILURE() << "made a stream";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(to_string(missing)), std::string::npos) << error.what();
  }
  EXPECT_FALSE(describe(device()).empty());
}

TEST(Runtime, CudaWithoutADeviceIsRefused) {
  if (device_count(Backend::kCuda) > 0) GTEST_SKIP() << "there is a CUDA device";
  EXPECT_THROW(Stream(Device::cuda(0)), std::invalid_argument);
}

TEST(Runtime, AHostEventOnAnInlineStreamIsDoneAtOnce) {
  Stream stream(Device::host(), {.execution = HostExecution::kInline});
  Event event(Device::host());
  int value = 0;
  stream.submit([to = &value] { *to = 1; });
  stream.record(event);
  EXPECT_EQ(value, 1);
  EXPECT_TRUE(event.done());
}

// Streams without a thread of their own.
class BorrowedStreams : public testing::Test {
 protected:
  static Stream borrowed() { return Stream(Device::host(), {.execution = HostExecution::kBorrowed}); }
  static Stream worker() { return Stream(Device::host()); }
};

TEST_F(BorrowedStreams, WhatIsReadyRunsInTheSubmitter) {
  Stream stream = borrowed();
  std::thread::id ran;
  stream.submit([to = &ran] { *to = std::this_thread::get_id(); });
  EXPECT_EQ(ran, std::this_thread::get_id());
}

TEST_F(BorrowedStreams, GoOnWhereTheirEventIsCompleted) {
  std::promise<void> opened;
  std::thread::id recorder, ran;
  Event event(Device::host()), behind(Device::host());
  Stream stream = borrowed(), other = worker();
  other.submit([promise = &opened, to = &recorder] {
    promise->get_future().wait();
    *to = std::this_thread::get_id();
  });
  other.record(event);
  stream.wait(event);
  stream.submit([to = &ran] { *to = std::this_thread::get_id(); });
  stream.record(behind);
  EXPECT_FALSE(behind.done());
  opened.set_value();
  stream.synchronize();
  EXPECT_EQ(ran, recorder);
  EXPECT_TRUE(behind.done());
}

TEST_F(BorrowedStreams, KeepTheFirstErrorAndStillCompleteEvents) {
  bool ran = false;
  Event event(Device::host());
  Stream stream = borrowed(), other = worker();
  stream.submit([] { throw DataError("first"); });
  stream.submit([to = &ran] { *to = true; });
  stream.record(event);
  other.wait(event);
  other.synchronize();
  EXPECT_FALSE(ran);
  EXPECT_THROW(stream.synchronize(), DataError);
}

TEST_F(BorrowedStreams, AllThatAreParkedAtAnEventGoOn) {
  std::promise<void> opened;
  std::vector<int> values(5);
  Event event(Device::host());
  Stream other = worker();
  other.submit([promise = &opened] { promise->get_future().wait(); });
  other.record(event);
  std::vector<Stream> streams;
  for (int& value : values) {
    streams.push_back(borrowed());
    streams.back().wait(event);
    streams.back().submit([to = &value] { ++*to; });
  }
  opened.set_value();
  for (Stream& stream : streams) stream.synchronize();
  EXPECT_EQ(values, std::vector<int>(5, 1));
}

// A ring of workers and borrowed streams hands one counter on: more tasks than a stream's queue holds, each
// reading what the one before it wrote.
TEST_F(BorrowedStreams, OrderWorkAmongThreads) {
  constexpr int kStreams = 6, kRounds = 2000;
  int counter = 0, mistakes = 0;
  std::vector<Event> events;
  std::vector<Stream> streams;
  for (int i = 0; i < kStreams; ++i) {
    streams.push_back(i % 2 == 0 ? worker() : borrowed());
    events.emplace_back(Device::host());
  }
  for (int step = 0; step < kRounds * kStreams; ++step) {
    const auto at = static_cast<std::size_t>(step % kStreams), before = (at + kStreams - 1) % kStreams;
    streams[at].wait(events[before]);
    streams[at].submit([count = &counter, wrong = &mistakes, step] {
      if (*count != step) ++*wrong;
      *count = step + 1;
    });
    streams[at].record(events[at]);
  }
  for (Stream& stream : streams) stream.synchronize();
  EXPECT_EQ(mistakes, 0);
  EXPECT_EQ(counter, kRounds * kStreams);
}

}  // namespace
}  // namespace pipeoptim::test
