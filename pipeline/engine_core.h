// What an engine owns between passes: stages, lanes, the current schedule, results. Private to pipeline.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "pipeline/engine.h"
#include "pipeline/lane.h"
#include "pipeline/repeated_loss.h"
#include "pipeline/stage.h"

namespace pipeoptim {

class Edge;
class PeerLinks;

// Results that may be under way before the oldest is looked at.
inline constexpr std::int64_t kResultRing = 64;

using PassClock = std::chrono::steady_clock;

struct EngineCore {
  EngineConfig config;
  std::unique_ptr<Loss> loss;
  Shape input;  // of a micro-batch
  std::int64_t minibatch_records = 0;
  std::int64_t microbatch_records = 0;
  std::int64_t record_labels = 1;     // rows of the logits for each record
  Schedule schedule;                  // of the last pass
  std::int64_t schedule_length = -1;  // mini-batches it was made for
  std::vector<Stage> stages;          // all are planned; those of this process have memory
  int first_here = 0, end_here = 0;   // the stages of this process
  std::vector<ModelTensor> tensors;
  std::vector<int> version_copies;
  std::vector<std::int32_t> gaps;  // by stage, in steady state
  int workers = 1;
  bool allocated = false;
  PassClock::time_point epoch = PassClock::now();

  // Last stage: labels by a ring that no schedule overruns, loss results by micro-batch.
  Buffer<std::int32_t> labels;
  std::int64_t label_ring = 1;
  Buffer<double> loss_sums;
  Buffer<std::int32_t> correct;
  Memory loss_workspace;
  std::optional<RepeatedLoss> repeated_loss;  // where graphs are used
  std::vector<Event> label_ready, label_free, result_ready;
  std::vector<OptimizerStatus> status;
  std::vector<std::vector<float>> rates;  // by stage: of the pass's steps and some beyond
  std::vector<TraceSpan> trace;
  std::vector<StageTiming> timing;
  std::vector<std::unique_ptr<StageLane>>
      lanes;                         // after everything that their work refers to; null: elsewhere
  std::unique_ptr<PeerLinks> links;  // with several processes
  std::vector<std::unique_ptr<Edge>> activation_edges, gradient_edges;  // by the stage that sends

  int depth() const { return static_cast<int>(stages.size()); }
  ScheduleRequest schedule_request(std::int64_t minibatches) const;
  Device device_of(int stage) const { return stages[static_cast<std::size_t>(stage)].device(); }
  bool here(int stage) const { return stage >= first_here && stage < end_here; }
  bool last_is_here() const { return end_here == depth(); }
  std::int64_t label_entry(const Instruction& instruction) const {
    return instruction.microbatch % label_ring;
  }
  std::int64_t minibatch_labels() const { return minibatch_records * record_labels; }
  std::int64_t microbatch_labels() const { return microbatch_records * record_labels; }
  bool uses_graphs(Mode mode) const { return config.cuda_graph && mode == Mode::kTraining; }
  int micro() const { return config.microbatches_per_update; }

  EngineCore(EngineConfig engine_config, std::vector<std::vector<NamedLayer>> layers,
             std::unique_ptr<Loss> stage_loss, const Shape& minibatch);
  ~EngineCore();
  void allocate();
  void use_schedule(std::int64_t minibatches);
  void use_rates(const TrainPass& pass);
  // Waits for all work; the first error comes out.
  void synchronize();
  void drain() noexcept;
  void throw_if_failed();
  // A pass has failed: nothing that is under way here or elsewhere waits for the rest of it.
  void abandon(const char* reason) noexcept;
  // Makes status and timing those of all stages. Returns whether anybody has asked to stop.
  bool share_results();
  int threads_of(int worker) const;

 private:
  void divide_stages(int depth);
  std::vector<std::vector<int>> worker_places() const;
  void allocate_lane(int stage, std::shared_ptr<Stream> compute);
  void allocate_loss();
  void connect();
};

// Runs one pass over the schedule: everything is stream-ordered, and the steady state allocates nothing.
PassResult run_pass(EngineCore& core, BatchSource& source, const Schedule& schedule, Mode mode,
                    const TrainPass& pass);

}  // namespace pipeoptim
