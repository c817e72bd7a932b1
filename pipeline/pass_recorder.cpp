#include "pipeline/pass_recorder.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace pipeoptim {
namespace {

const char* op_name(Op op) {
  switch (op) {
    case Op::kForward:
      return "F";
    case Op::kBackward:
      return "B";
    case Op::kBackwardInput:
      return "B input";
    case Op::kBackwardWeights:
      return "B weights";
    case Op::kUpdate:
      return "U";
    case Op::kPredict:
      return "P";
    case Op::kUpdatePredict:
      return "U+P";
    case Op::kStashWeights:
      return "stash";
    default:
      return "transfer";
  }
}

}  // namespace

PassRecorder::PassRecorder(EngineCore& core, const Schedule& schedule, const TrainPass& pass)
    : core_(core), pass_(pass), first_microbatch_(pass.first_step * schedule.microbatches_per_update) {
  for (int k = 0; k < core_.depth(); ++k) {
    StageLane& here = lane(k);
    const std::size_t instructions = schedule.stages[static_cast<std::size_t>(k)].size();
    here.busy_us = 0;
    here.started = false;
    here.versions.clear();
    if (pass_.on_version) here.versions.reserve(instructions);
    for (SpanLog& log : here.logs) {
      log.next = 0;
      if (core_.config.trace) log.spans.resize(instructions);
    }
  }
}

std::int64_t PassRecorder::global_microbatch(const Instruction& instruction) const {
  return first_microbatch_ + instruction.microbatch;
}

void PassRecorder::note_version(int k, const Instruction& instruction, char op) {
  if (!pass_.on_version) return;
  StageLane* const here = &lane(k);
  VersionRecord record{k, pass_.first_step + instruction.minibatch, global_microbatch(instruction), op, 0, 0};
  here->streams[kCompute].submit(
      [here, record, source = instruction.source, slot = instruction.version_slot]() mutable {
        record.version = here->version;
        if (record.op != 'U' && source == WeightSource::kVersion) {
          record.version = here->stashed_version[static_cast<std::size_t>(slot)];
        }
        if (record.op != 'U' && source == WeightSource::kPredicted) {
          record.version = here->predicted_version;
          record.horizon = here->predicted_horizon;
        }
        here->versions.push_back(record);  // reserved
      });
}

void PassRecorder::begin_span(int k, StreamId stream) {
  StageLane* const here = &lane(k);
  here->streams[stream].submit([here, stream] {
    here->logs[stream].begin = PassClock::now();
    if (stream != kCompute) return;
    if (!here->started) here->pass_begin = here->logs[stream].begin;
    here->started = true;
  });
}

void PassRecorder::end_span(int k, StreamId stream, const Instruction& instruction) {
  StageLane* const here = &lane(k);
  const bool keep = core_.config.trace;
  here->streams[stream].submit(
      [here, stream, keep, op = instruction.op, microbatch = global_microbatch(instruction)] {
        SpanLog& log = here->logs[stream];
        const Span span{op, microbatch, log.begin, PassClock::now()};
        if (stream == kCompute) {
          here->busy_us += microseconds(span.end - span.begin);
          here->pass_end = span.end;
        }
        if (keep) log.spans[log.next++] = span;
      });
}

void PassRecorder::finish(Mode mode) {
  PassClock::time_point begin = PassClock::time_point::max();
  PassClock::time_point end = PassClock::time_point::min();
  for (auto& here : core_.lanes) {
    if (!here->started) continue;
    begin = std::min(begin, here->pass_begin);
    end = std::max(end, here->pass_end);
  }
  for (int k = 0; k < core_.depth(); ++k) {
    StageLane& here = lane(k);
    if (mode == Mode::kTraining) {
      core_.timing[static_cast<std::size_t>(k)] = {here.busy_us * 1e-6,
                                                   std::chrono::duration<double>(end - begin).count()};
    }
    for (const VersionRecord& record : here.versions) pass_.on_version(record);
    if (core_.config.trace) keep_trace(k);
  }
}

void PassRecorder::keep_trace(int k) {
  const StageLane& here = lane(k);
  for (std::size_t stream = 0; stream < here.logs.size(); ++stream) {
    const SpanLog& log = here.logs[stream];
    for (std::size_t i = 0; i < log.next; ++i) {
      const Span& span = log.spans[i];
      TraceSpan out{k,
                    static_cast<int>(stream),
                    {},
                    microseconds(span.begin - core_.epoch),
                    microseconds(span.end - core_.epoch)};
      std::snprintf(out.name, sizeof(out.name), "%s %lld", stream == kCompute ? op_name(span.op) : "copy",
                    static_cast<long long>(span.microbatch));
      core_.trace.push_back(out);
    }
  }
}

}  // namespace pipeoptim
