// What does a message between two stages cost? By its size: the latency, from the work that fills it to the
// work that reads it, and the rate of one message behind the other, also in per cent of a copy of the same
// memory (GB/s%).
// stages: both in one process, through the engine's own edges; on two cores, or on one CUDA device.
// devices: the same on two CUDA devices. nccl: on two CUDA devices, each with a process of its own.
// sockets: what processes tell each other beside tensors; its ceiling is a plain socket.
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/no_work.h"
#include "bench/partner.h"
#include "bench/support.h"
#include "pipeline/edge.h"
#include "pipeline/processes/process_group.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

enum class Side { kFirst, kSecond };

// One activation after the other from the first of two stages to the second, or, as an exchange, each of them
// answered by a gradient. The stages do nothing: the rest is as in training. In two processes both call it.
class StageChannel {
 public:
  StageChannel(EngineConfig config, std::size_t bytes)
      : bytes_(bytes), core_(std::move(config), empty_stages(2), std::make_unique<NoLoss>(), shape(bytes)) {
    core_.allocate();
    recorder_.emplace(core_, core_.schedule, pass_);
  }

  // On the clock of the first stage; in the second process nothing.
  double run(Order::Pattern pattern, std::int32_t count) {
    for (auto* edges : {&core_.activation_edges, &core_.gradient_edges}) {
      for (auto& edge : *edges) {
        if (edge) edge->begin_pass(count);
      }
    }
    double time = 0;
    if (core_.here(0)) {
      time = seconds(compute(0), [&] { enqueue(pattern, count); });
    } else {
      enqueue(pattern, count);
    }
    core_.synchronize();
    return time;
  }

  // The ceiling: as many copies of the same memory, on one stream.
  double copy(std::int32_t count) {
    return seconds(compute(0), [&] {
      for (std::int32_t i = 0; i < count; ++i) {
        compute(0).copy(core_.stages[1].input(slot(1, i)).memory(),
                        core_.stages[0].output(slot(0, i)).memory(), bytes_);
      }
    });
  }

 private:
  static Shape shape(std::size_t bytes) { return {1, static_cast<std::int64_t>(bytes / sizeof(float))}; }
  StageLane& lane(int stage) { return *core_.lanes[static_cast<std::size_t>(stage)]; }
  Stream& compute(int stage) { return lane(stage).streams[kCompute]; }
  std::int32_t slot(int stage, std::int32_t i) const {
    return i % core_.schedule.slots[static_cast<std::size_t>(stage)];
  }

  void enqueue(Order::Pattern pattern, std::int32_t count) {
    for (std::int32_t i = 0; i < count; ++i) {
      send_activation(i);
      if (pattern == Order::kExchange) send_gradient(i);
    }
    if (!core_.here(0)) return;
    for (const Event& event : lane(0).output_consumed) compute(0).wait(event);
  }

  void send_activation(std::int32_t i) {
    const std::int32_t from = slot(0, i), to = slot(1, i);
    if (core_.here(0)) {
      compute(0).wait(lane(0).output_consumed[from]);
      compute(0).record(lane(0).output_ready[from]);
      core_.activation_edges[0]->send({.op = Op::kSendActivation, .microbatch = i, .slot = from});
    }
    if (core_.here(1)) {
      core_.activation_edges[0]->receive({.op = Op::kReceiveActivation, .microbatch = i, .slot = to},
                                         *recorder_);
      compute(1).wait(lane(1).input_ready[to]);
      compute(1).record(lane(1).slot_free[to]);
    }
  }

  void send_gradient(std::int32_t i) {
    const std::int32_t from = slot(1, i), to = slot(0, i);
    if (core_.here(1)) {
      compute(1).wait(lane(1).input_gradient_consumed[from]);
      compute(1).record(lane(1).input_gradient_ready[from]);
      core_.gradient_edges[1]->send({.op = Op::kSendGradient, .microbatch = i, .slot = from});
    }
    if (core_.here(0)) {
      core_.gradient_edges[1]->receive({.op = Op::kReceiveGradient, .microbatch = i, .slot = to}, *recorder_);
      compute(0).wait(lane(0).gradient_ready[to]);
      compute(0).record(lane(0).slot_free[to]);
    }
  }

  std::size_t bytes_;
  EngineCore core_;
  const TrainPass pass_;
  std::optional<PassRecorder> recorder_;
};

// The same over a socket.
template <typename Line>
void talk(const Line& line, Order::Pattern pattern, std::uint64_t count, std::vector<std::byte>& message,
          Side side) {
  const auto pass = [&](std::size_t bytes, bool sends) {
    sends ? line.send(message.data(), bytes) : line.receive(message.data(), bytes);
  };
  const bool first = side == Side::kFirst;
  for (std::uint64_t i = 0; i < count; ++i) {
    pass(message.size(), first);
    if (pattern == Order::kExchange) pass(message.size(), !first);
  }
  if (pattern == Order::kStream) pass(1, !first);  // all of it has arrived
}

// The two processes with a CUDA device each: the group is made once, stages for each size of messages.
class ProcessStages {
 public:
  explicit ProcessStages(int rank) : device_(Device::cuda(rank)) {
    make_current(device_);
    ProcessGroupOptions options;
    options.identity = {rank, 2, rank};
    options.place.file = meeting_file();
    group_.emplace(std::move(options));
  }

  StageChannel& channel(std::size_t bytes) {
    if (bytes != bytes_) {
      channel_.reset();
      EngineConfig config;
      config.device = device_;
      config.processes = &*group_;
      channel_.emplace(std::move(config), bytes);
      bytes_ = bytes;
    }
    return *channel_;
  }

  // Known to both processes before they part.
  static std::string& meeting_file() {
    static std::string file;
    return file;
  }

 private:
  Device device_;
  std::optional<ProcessGroup> group_;
  std::size_t bytes_ = 0;
  std::optional<StageChannel> channel_;
};

void serve(Lines& lines) {
  std::optional<ProcessStages> stages;
  std::vector<std::byte> message;
  while (true) {
    Order order;
    lines.project.receive(&order, sizeof(order));
    if (order.way == Order::kEnd) return;
    if (order.way == Order::kStages) {
      if (!stages) stages.emplace(1);
      stages->channel(order.bytes).run(order.pattern, static_cast<std::int32_t>(order.count));
      continue;
    }
    message.resize(order.bytes);
    if (order.way == Order::kPlainLine) {
      talk(lines.plain, order.pattern, order.count, message, Side::kSecond);
    } else {
      talk(lines.project, order.pattern, order.count, message, Side::kSecond);
    }
  }
}

// main()'s; and this process's part of what `nccl` measures.
const Partner* partner = nullptr;
std::optional<ProcessStages> first_stage;

// Of a message.
struct Costs {
  Samples latency, stream, ceiling;

  void report(benchmark::State& state, const char* ceiling_name) const {
    const auto bytes = static_cast<double>(state.range(0));
    state.counters["latency_s"] = latency.median();
    state.counters["GB/s"] = bytes / stream.median() * 1e-9;
    state.counters["GB/s%"] = 100 * ceiling.median() / stream.median();
    state.SetLabel(std::string("latency; rate, % of ") + ceiling_name);
  }
};

// Messages between two looks at the clock: enough that waking a thread for the first one does not matter.
std::int32_t messages(std::int64_t bytes) {
  return static_cast<std::int32_t>(std::clamp<std::int64_t>((16 << 20) / bytes, 2, 256));
}

// `run(pattern)` and `ceiling()` give the seconds of `count` messages.
template <typename Run, typename Ceiling>
void measure(benchmark::State& state, const Run& run, const Ceiling& ceiling, const char* ceiling_name) {
  const double count = messages(state.range(0));
  Costs costs;
  for (const auto pattern : {Order::kStream, Order::kExchange}) run(pattern);  // first touch
  ceiling();
  for ([[maybe_unused]] auto _ : state) {
    costs.ceiling.add(ceiling() / count);
    const double time = run(Order::kStream);
    costs.stream.add(time / count);
    costs.latency.add(run(Order::kExchange) / (2 * count));
    state.SetIterationTime(time);
  }
  costs.report(state, ceiling_name);
}

void stages(benchmark::State& state, int devices) {
  EngineConfig config;
  config.device = device();
  config.devices = devices;
  config.threads = 2;
  StageChannel channel(std::move(config), static_cast<std::size_t>(state.range(0)));
  const std::int32_t count = messages(state.range(0));
  measure(
      state, [&](Order::Pattern pattern) { return channel.run(pattern, count); },
      [&] { return channel.copy(count); }, "copy");
}

void sockets(benchmark::State& state) {
  const auto bytes = static_cast<std::uint64_t>(state.range(0));
  const auto count = static_cast<std::uint64_t>(messages(state.range(0)));
  std::vector<std::byte> message(bytes);
  const auto time = [&](const auto& line, Order::Way way, Order::Pattern pattern) {
    const auto begin = std::chrono::steady_clock::now();
    partner->order({way, pattern, bytes, count});
    talk(line, pattern, count, message, Side::kFirst);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const Lines& lines = partner->lines();
  Samples plain_latency;
  measure(
      state, [&](Order::Pattern pattern) { return time(lines.project, Order::kProjectLine, pattern); },
      [&] {
        plain_latency.add(time(lines.plain, Order::kPlainLine, Order::kExchange) /
                          (2 * static_cast<double>(count)));
        return time(lines.plain, Order::kPlainLine, Order::kStream);
      },
      "a plain socket");
  state.counters["latency%"] = 100 * plain_latency.median() / state.counters["latency_s"];
}

// The ceiling is the driver's copy from one device to the other, within this process.
void nccl(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  const std::int32_t count = messages(state.range(0));
  EngineConfig config;
  config.device = device();
  config.devices = 2;
  StageChannel copies(std::move(config), bytes);
  const auto run = [&](Order::Pattern pattern) {
    partner->order({Order::kStages, pattern, bytes, static_cast<std::uint64_t>(count)});
    if (!first_stage) first_stage.emplace(0);
    return first_stage->channel(bytes).run(pattern, count);
  };
  measure(
      state, run, [&] { return copies.copy(count); }, "copy");
}

void add(const char* name, const std::function<void(benchmark::State&)>& function) {
  auto* const added = benchmark::RegisterBenchmark(name, function);
  for (const std::int64_t bytes : {1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20}) added->Arg(bytes);
  added->ArgName("bytes")->UseManualTime()->Iterations(20)->Unit(benchmark::kMillisecond);
}

void add_all() {
  add("stages", [](benchmark::State& state) { stages(state, 1); });
  if (device() == Device::host()) return add("sockets", sockets);
  if (device_count(Backend::kCuda) < 2) return;
  add("devices", [](benchmark::State& state) { stages(state, 2); });
  if (built_with_nccl()) add("nccl", nccl);
}

}  // namespace

int main(int argc, char** argv) {
  // As the program does where it uses NCCL: a kernel that is loaded late may wait for the whole device.
  static_cast<void>(setenv("CUDA_MODULE_LOADING", "EAGER", 0));
  ProcessStages::meeting_file() =
      (std::filesystem::temp_directory_path() / ("pipeoptim-channels-" + std::to_string(getpid()))).string();
  Partner second(serve);
  partner = &second;
  const int code = run(argc, argv, add_all);
  second.end();
  first_stage.reset();
  return code;
}
