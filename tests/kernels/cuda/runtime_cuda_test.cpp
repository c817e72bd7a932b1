// What only CUDA has: several devices, captured streams, the caller's current device.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/cuda/cuda_check.h"
#include "kernels/runtime/error.h"
#include "kernels/runtime/graph.h"
#include "kernels/runtime/stream.h"
#include "kernels/runtime/turns.h"

namespace pipeoptim::test {
namespace {

class CudaRuntime : public testing::Test {
 protected:
  void SetUp() override { require_devices(1); }
  static void require_devices(int count) {
    if (device_count(Backend::kCuda) < count) GTEST_SKIP() << "fewer than " << count << " CUDA devices";
  }
};

class CudaDevices : public CudaRuntime {
 protected:
  void SetUp() override { require_devices(2); }
};

TEST_F(CudaRuntime, AFailedCallNamesItselfItsStatusAndItsPlace) {
  try {
    cuda::check(cudaErrorInvalidValue, "cudaSomething");
    ADD_FAILURE() << "no exception";
  } catch (const DeviceError& error) {
    const std::string what = error.what();
    for (const char* part : {"cudaSomething", "cudaErrorInvalidValue", "runtime_cuda_test.cpp:"}) {
      EXPECT_NE(what.find(part), std::string::npos) << what;
    }
  }
}

TEST_F(CudaRuntime, AGraphRepeatsWhatWasCaptured) {
  const Device device = Device::cuda(0);
  Stream stream(device);
  Buffer<int> from(device, 2, MemoryKind::kPinned), to(device, 2, MemoryKind::kPinned);
  from.data()[0] = 1;
  to.data()[0] = 7;
  const Graph graph = Graph::capture(stream, [&] { stream.copy(to.data(), from.data(), sizeof(int)); });
  stream.synchronize();
  EXPECT_EQ(to.data()[0], 7) << "capturing runs nothing";
  for (const int value : {2, 3}) {
    from.data()[0] = value;
    graph.launch(stream);
    stream.synchronize();
    EXPECT_EQ(to.data()[0], value);
  }
}

TEST_F(CudaRuntime, AGraphTakesWhatWasPostedForEachLaunch) {
  constexpr int kLaunches = 100;
  const Device device = Device::cuda(0);
  Stream stream(device);
  Turns<int> turns(device);
  Buffer<int> now(device, 1), taken(device, kLaunches, MemoryKind::kPinned);
  turns.post(stream, -1);
  turns.take(stream);  // loads the kernel
  const Graph graph = Graph::capture(stream, [&] {
    turns.take(stream);
    stream.copy(now.data(), turns.now(), sizeof(int));
  });
  for (int launch = 0; launch < kLaunches; ++launch) {
    turns.post(stream, launch);
    graph.launch(stream);
    stream.copy(taken.data() + launch, now.data(), sizeof(int));
  }
  stream.synchronize();
  for (int launch = 0; launch < kLaunches; ++launch) EXPECT_EQ(taken.data()[launch], launch);
}

TEST_F(CudaRuntime, AnExceptionDropsTheCapture) {
  Stream stream(Device::cuda(0));
  EXPECT_THROW(Graph::capture(stream, [] { throw DataError("no"); }), DataError);
  bool ran = false;
  stream.submit([to = &ran] { *to = true; });
  stream.synchronize();
  EXPECT_TRUE(ran);
}

TEST(Graph, RefusesHostStreams) {
  Stream stream(Device::host());
  EXPECT_THROW(Graph::capture(stream, [] {}), std::logic_error);
}

TEST_F(CudaRuntime, CapturedTasksRunAtEachLaunchOfTheGraph) {
  int sum = 0;
  Stream stream(Device::cuda(0));
  const auto native = static_cast<cudaStream_t>(stream.native());
  cuda::check(cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  for (int task = 1; task <= 200; ++task) stream.submit([to = &sum, task] { *to += task; });
  EXPECT_NO_THROW(stream.throw_if_failed());
  cudaGraph_t graph = nullptr;
  cuda::check(cudaStreamEndCapture(native, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  EXPECT_EQ(sum, 0);
  for (int launch = 0; launch < 3; ++launch) {
    cuda::check(cudaGraphLaunch(executable, native), "cudaGraphLaunch");
    for (int task = 0; task < 150; ++task) stream.submit([to = &sum] { ++*to; });  // reuses all slots
  }
  stream.synchronize();
  EXPECT_EQ(sum, 3 * (200 * 201 / 2 + 150));
  cuda::check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
  cuda::check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

TEST_F(CudaDevices, TheCallersDeviceStaysCurrent) {
  for (const int current : {0, 1}) {
    cuda::check(cudaSetDevice(current), "cudaSetDevice");
    for (const int other : {0, 1}) {
      const Memory memory(Device::cuda(other), 100);
      Stream stream(Device::cuda(other));
      const Event event(Device::cuda(other));
      stream.fill_zero(memory.data(), memory.bytes());
      stream.synchronize();
      int now = -1;
      cuda::check(cudaGetDevice(&now), "cudaGetDevice");
      EXPECT_EQ(now, current);
    }
  }
  cuda::check(cudaSetDevice(0), "cudaSetDevice");
}

TEST_F(CudaDevices, EventsOrderCopiesBetweenDevices) {
  constexpr std::size_t kElements = 5000;
  for (const bool direct : {false, true}) {
    if (direct) {
      for (const int time : {0, 1}) {
        EXPECT_EQ(enable_peer_access(Device::cuda(1), Device::cuda(0)),
                  enable_peer_access(Device::cuda(0), Device::cuda(1)))
            << time;
      }
    }
    Buffer<int> from(Device::cuda(0), kElements, MemoryKind::kPinned);
    std::iota(from.data(), from.data() + kElements, 0);
    const Buffer<int> first(Device::cuda(0), kElements);
    const Buffer<int> second(Device::cuda(1), kElements);
    Stream sender(Device::cuda(0));
    Stream receiver(Device::cuda(1));
    Event ready(Device::cuda(0));
    sender.copy(first.data(), from.data(), kElements * sizeof(int));
    sender.record(ready);
    receiver.wait(ready);
    receiver.copy(second.data(), first.data(), kElements * sizeof(int));
    receiver.synchronize();
    std::vector<int> seen(kElements);
    copy_to_host(seen.data(), second.data(), kElements * sizeof(int), Device::cuda(1));
    EXPECT_EQ(seen, std::vector<int>(from.data(), from.data() + kElements));
  }
}

TEST_F(CudaDevices, AnEventIsRecordedOnItsOwnDevice) {
  Stream stream(Device::cuda(1));
  Event event(Device::cuda(0));
  EXPECT_THROW(stream.record(event), std::logic_error);
}

}  // namespace
}  // namespace pipeoptim::test
