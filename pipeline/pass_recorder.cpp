#include "pipeline/pass_recorder.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace pipeoptim {
PassRecorder::PassRecorder(EngineCore& core, const Schedule& schedule, const TrainPass& pass)
    : core_(core), pass_(pass), first_microbatch_(pass.first_step * schedule.microbatches_per_update) {
  for (int k = core_.first_here; k < core_.end_here; ++k)
    start(k, schedule.stages[static_cast<std::size_t>(k)].size());
}

void PassRecorder::start(int k, std::size_t instructions) {
  StageLane& here = lane(k);
  here.version = pass_.first_step;
  here.versions.clear();
  if (pass_.on_version) here.versions.reserve(instructions);
  here.busy_us = 0;
  for (SpanRing& ring : here.spans) ring.issued = ring.taken = 0;
  // The host's time of pass_start lies between two readings; again where a busy host was long between them.
  using Microseconds = std::chrono::duration<double, std::micro>;
  for (int attempt = 0; attempt < 8; ++attempt) {
    const auto before = PassClock::now();
    here.streams[kCompute].record(here.pass_start);
    here.pass_start.synchronize();
    const Microseconds between = PassClock::now() - before;
    here.pass_start_us = Microseconds(before - core_.epoch).count() + between.count() / 2;
    if (between.count() < 100) break;
  }
}

std::int64_t PassRecorder::global_microbatch(const Instruction& instruction) const {
  return first_microbatch_ + instruction.microbatch;
}

void PassRecorder::note_pass(int k, const Instruction& instruction, char op) {
  if (!pass_.on_version) return;
  StageLane* const here = &lane(k);
  VersionRecord record{k, pass_.first_step + instruction.minibatch, global_microbatch(instruction), op, 0, 0};
  here->streams[kCompute].submit([here, record, source = instruction.source,
                                  version_slot = instruction.version_slot,
                                  predicted_slot = instruction.predicted_slot]() mutable {
    record.version = here->version;
    if (source == WeightSource::kVersion) {
      record.version = here->stashed_version[static_cast<std::size_t>(version_slot)];
    }
    if (source == WeightSource::kPredicted) {
      const auto& prediction = here->predictions[static_cast<std::size_t>(predicted_slot)];
      record.version = prediction.version;
      record.horizon = prediction.horizon;
    }
    here->versions.push_back(record);  // reserved
  });
}

void PassRecorder::note_weights(int k, const Instruction& instruction) {
  if (!pass_.on_version) return;
  StageLane* const here = &lane(k);
  VersionRecord record{k, pass_.first_step + instruction.minibatch, global_microbatch(instruction), 'U', 0,
                       0};
  here->streams[kCompute].submit([here, record, op = instruction.op, horizon = instruction.horizon,
                                  version_slot = instruction.version_slot,
                                  predicted_slot = instruction.predicted_slot]() mutable {
    if (is_update(op)) {
      record.version = ++here->version;
      here->versions.push_back(record);  // reserved
    }
    if (op == Op::kPredict || op == Op::kUpdatePredict) {
      here->predictions[static_cast<std::size_t>(predicted_slot)] = {here->version, horizon};
    }
    if (op == Op::kStashWeights)
      here->stashed_version[static_cast<std::size_t>(version_slot)] = here->version;
  });
}

void PassRecorder::begin_span(int k, StreamId stream, const Instruction& instruction) {
  if (!times(stream)) return;
  SpanRing& ring = lane(k).spans[stream];
  if (ring.issued - ring.taken == SpanRing::kEntries) take_span(k, stream);
  SpanRing::Entry& entry = ring.at(ring.issued);
  entry.op = instruction.op;
  entry.microbatch = global_microbatch(instruction);
  lane(k).streams[stream].record(entry.begin);
}

void PassRecorder::end_span(int k, StreamId stream) {
  if (!times(stream)) return;
  SpanRing& ring = lane(k).spans[stream];
  lane(k).streams[stream].record(ring.at(ring.issued++).end);
}

void PassRecorder::take_span(int k, std::size_t stream) {
  StageLane& here = lane(k);
  SpanRing& ring = here.spans[stream];
  SpanRing::Entry& entry = ring.at(ring.taken);
  entry.end.synchronize();
  const double begin_us = here.pass_start_us + 1e3 * entry.begin.milliseconds_since(here.pass_start);
  const double duration_us = 1e3 * entry.end.milliseconds_since(entry.begin);
  const double end_us = begin_us + duration_us;
  if (stream == kCompute) {
    if (ring.taken == 0) here.first_us = begin_us;
    here.last_us = end_us;
    here.busy_us += duration_us;
  }
  if (core_.config.trace) {
    TraceSpan span{k, static_cast<int>(stream), {}, begin_us, end_us};
    std::snprintf(span.name, sizeof(span.name), "%s %lld", stream == kCompute ? short_name(entry.op) : "copy",
                  static_cast<long long>(entry.microbatch));
    core_.trace.push_back(span);
  }
  ++ring.taken;
}

void PassRecorder::finish(Mode mode) {
  double first_us = 0, last_us = 0;  // over all stages
  for (int k = core_.first_here; k < core_.end_here; ++k) {
    StageLane& here = lane(k);
    for (std::size_t stream = 0; stream < here.spans.size(); ++stream) {
      while (here.spans[stream].taken < here.spans[stream].issued) take_span(k, stream);
    }
    first_us = k == core_.first_here ? here.first_us : std::min(first_us, here.first_us);
    last_us = std::max(last_us, here.last_us);
    for (const VersionRecord& record : here.versions) pass_.on_version(record);
  }
  if (mode != Mode::kTraining) return;
  std::fill(core_.timing.begin(), core_.timing.end(), StageTiming{0, (last_us - first_us) * 1e-6});
  for (int k = core_.first_here; k < core_.end_here; ++k) {
    const auto worker = static_cast<std::size_t>(core_.schedule.worker_of(k));
    core_.timing[worker].busy_seconds += lane(k).busy_us * 1e-6;
  }
}

}  // namespace pipeoptim
