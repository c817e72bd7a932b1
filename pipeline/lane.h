// The streams of one stage, the events of its activation slots, and what their workers write down.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/runtime/stream.h"
#include "pipeline/engine.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

enum StreamId : std::size_t { kCompute = 0, kActivations = 1, kGradients = 2 };

inline double microseconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

using PassClock = std::chrono::steady_clock;

// What a stream's worker writes down about its work; read after the pass.
struct Span {
  Op op;
  std::int64_t microbatch;
  PassClock::time_point begin, end;
};
struct SpanLog {
  std::vector<Span> spans;  // sized before the pass where a trace is wanted
  std::size_t next = 0;
  PassClock::time_point begin;
};

struct StageLane {
  StageLane(Device device, int threads, int index, int slots, HostExecution execution) {
    const std::string name = "stage" + std::to_string(index);
    for (int i = 0; i < slots; ++i) {
      for (auto* events : {&input_ready, &slot_free, &output_ready, &output_consumed, &gradient_ready,
                           &input_gradient_ready, &input_gradient_consumed}) {
        events->emplace_back(device);
      }
    }
    streams.emplace_back(device, StreamOptions{threads, execution, name});
    streams.emplace_back(device, StreamOptions{1, execution, name + "-act"});
    streams.emplace_back(device, StreamOptions{1, execution, name + "-grad"});
  }

  std::vector<Event> input_ready;              // activations stream: the input lies in the slot
  std::vector<Event> slot_free;                // compute: the slot's last user is done
  std::vector<Event> output_ready;             // compute: the output lies in the slot
  std::vector<Event> output_consumed;          // next stage's activations stream: it has its copy
  std::vector<Event> gradient_ready;           // gradients stream: the output gradient lies in the slot
  std::vector<Event> input_gradient_ready;     // compute
  std::vector<Event> input_gradient_consumed;  // previous stage's gradients stream

  // Written by the compute worker in stream order.
  std::int64_t version = 0;  // completed updates since the start of training
  std::int64_t predicted_version = 0;
  int predicted_horizon = 0;
  std::vector<std::int64_t> stashed_version;
  std::vector<VersionRecord> versions;
  double busy_us = 0;  // of the compute stream
  PassClock::time_point pass_begin, pass_end;
  bool started = false;
  std::array<SpanLog, 3> logs;  // by stream

  std::vector<Stream> streams;  // last: destroyed first, before what their work refers to
};

}  // namespace pipeoptim
