// What an engine owns between passes: stages, lanes, the current schedule, results. Private to pipeline.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "pipeline/engine.h"
#include "pipeline/lane.h"
#include "pipeline/stage.h"

namespace pipeoptim {

// Results that may be under way before the oldest is looked at.
inline constexpr std::int64_t kResultRing = 64;

using PassClock = std::chrono::steady_clock;

struct EngineCore {
  EngineConfig config;
  std::unique_ptr<Loss> loss;
  Shape input;  // of a micro-batch
  std::int64_t minibatch_records = 0;
  std::int64_t microbatch_records = 0;
  Schedule schedule;                  // of the last pass
  std::int64_t schedule_length = -1;  // mini-batches it was made for
  std::vector<Stage> stages;
  std::vector<ModelTensor> tensors;
  std::vector<int> version_copies;
  std::vector<int> gaps;  // by stage: updates between a forward and its backward in steady state
  int workers = 1;
  bool allocated = false;
  PassClock::time_point epoch = PassClock::now();

  // Last stage: labels by a ring that no schedule overruns, loss results by micro-batch.
  Buffer<std::int32_t> labels;
  std::int64_t label_ring = 1;
  Buffer<double> loss_sums;
  Buffer<std::int32_t> correct;
  Memory loss_workspace;
  std::vector<Event> label_ready, label_free, result_ready;
  std::vector<OptimizerStatus> status;
  std::vector<std::vector<float>> rates;  // by stage: of the pass's steps and some beyond
  std::vector<TraceSpan> trace;
  std::vector<StageTiming> timing;
  std::vector<std::unique_ptr<StageLane>> lanes;  // after everything that their work refers to

  int depth() const { return static_cast<int>(stages.size()); }
  ScheduleRequest schedule_request(std::int64_t minibatches) const;
  Device device_of(int stage) const { return stages[static_cast<std::size_t>(stage)].device(); }
  int micro() const { return config.microbatches_per_update; }

  EngineCore(EngineConfig engine_config, std::vector<std::vector<NamedLayer>> layers,
             std::unique_ptr<Loss> stage_loss, const Shape& minibatch);
  void allocate();
  void use_schedule(std::int64_t minibatches);
  void use_rates(const TrainPass& pass);
  void drain() noexcept;
  void throw_if_failed();
  int threads_of(int worker) const;
};

// Runs one pass over the schedule: everything is stream-ordered, and the steady state allocates nothing.
PassResult run_pass(EngineCore& core, BatchSource& source, const Schedule& schedule, Mode mode,
                    const TrainPass& pass);

}  // namespace pipeoptim
