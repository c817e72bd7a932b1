// The streams of one stage, the events of its activation slots, and what their workers write down.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/stream.h"
#include "kernels/runtime/turns.h"
#include "optim/optimizer.h"
#include "pipeline/engine.h"
#include "pipeline/graph_cache.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

enum StreamId : std::size_t { kCompute = 0, kActivations = 1, kGradients = 2 };

// The latest instructions of one stream, each between two events. Their times are looked at when an entry is
// used again, so long after its work that nobody waits.
struct SpanRing {
  static constexpr std::size_t kEntries = 256;
  struct Entry {
    explicit Entry(Device device) : begin(device, EventTiming::kOn), end(device, EventTiming::kOn) {}
    Event begin, end;
    Op op = Op::kForward;
    std::int64_t microbatch = 0;
  };

  SpanRing(Device device, bool used) {
    if (!used) return;
    for (std::size_t i = 0; i < kEntries; ++i) entries.emplace_back(device);
  }
  Entry& at(std::size_t i) { return entries[i % kEntries]; }

  std::vector<Entry> entries;
  std::size_t issued = 0, taken = 0;
};

struct LaneOptions {
  Device device;
  Device previous, next;  // of the neighbours, whose streams read this stage's results
  int index = 0;
  int slots = 1;
  std::shared_ptr<Stream> compute = {};  // of the worker, which the stages on it share
  HostExecution execution = HostExecution::kWorker;
  bool times_copies = false;  // for a trace; compute is always timed
  bool graphs = false;
};

struct LaneStreams {
  std::vector<std::shared_ptr<Stream>> all;
  Stream& operator[](std::size_t id) const { return *all[id]; }
};

struct StageLane {
  explicit StageLane(const LaneOptions& options)
      : rates(options.graphs ? std::make_optional<Turns<StepRates>>(options.device) : std::nullopt),
        pass_start(options.device, EventTiming::kOn),
        spans{SpanRing(options.device, true), SpanRing(options.device, options.times_copies),
              SpanRing(options.device, options.times_copies)} {
    const Device device = options.device;
    const std::string name = "stage" + std::to_string(options.index);
    for (int i = 0; i < options.slots; ++i) {
      for (auto* events : {&input_ready, &slot_free, &output_ready, &gradient_ready, &input_gradient_ready}) {
        events->emplace_back(device);
      }
      output_consumed.emplace_back(options.next);
      input_gradient_consumed.emplace_back(options.previous);
    }
    // On the host a copy is made by the thread that has filled its source: waking another one costs more.
    const auto execution =
        options.execution == HostExecution::kWorker ? HostExecution::kBorrowed : options.execution;
    const auto transfers = [&](const char* direction) {
      return std::make_shared<Stream>(device, StreamOptions{1, execution, name + direction});
    };
    streams.all = {options.compute, transfers("-act"), transfers("-grad")};
  }

  std::vector<Event> input_ready;              // activations stream: the input lies in the slot
  std::vector<Event> slot_free;                // compute: the slot's last user is done
  std::vector<Event> output_ready;             // compute: the output lies in the slot
  std::vector<Event> output_consumed;          // next stage's activations stream: it has its copy
  std::vector<Event> gradient_ready;           // gradients stream: the output gradient lies in the slot
  std::vector<Event> input_gradient_ready;     // compute
  std::vector<Event> input_gradient_consumed;  // previous stage's gradients stream

  // Written by the compute worker in stream order, where a pass asks for versions.
  std::int64_t version = 0;  // completed updates since the start of training
  struct Prediction {
    std::int64_t version = 0;
    int horizon = 0;
  };
  std::vector<Prediction> predictions;  // by predicted copy
  std::vector<std::int64_t> stashed_version;
  std::vector<VersionRecord> versions;

  // Where the engine uses them: the compute instructions as graphs, and what their optimizer steps take.
  GraphCache graphs;
  std::optional<Turns<StepRates>> rates;

  // Microseconds since the engine was made or, busy, of the compute stream's work; of the last pass.
  Event pass_start;
  double pass_start_us = 0, first_us = 0, last_us = 0, busy_us = 0;
  std::array<SpanRing, 3> spans;  // by stream

  LaneStreams streams;  // last: destroyed first, before what their work refers to
};

}  // namespace pipeoptim
