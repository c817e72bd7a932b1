// The engine turns a schedule into stream-ordered work. It decides nothing: order comes from the programs,
// events from one rule (a transfer waits for the compute that filled its buffer, compute waits for the
// transfer it reads).
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/stream.h"
#include "layers/layer.h"
#include "optim/optimizer.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

class ProcessGroup;

// One mini-batch in host memory (pinned for CUDA): inputs of `input` shape, and one label for each row of the
// logits: a record's, or those of its positions one after the other. Padding has label -1.
struct Batch {
  const float* inputs = nullptr;
  const std::int32_t* labels = nullptr;
};

// Where the engine gets mini-batches from. Called from the engine's host thread and, for release, from stream
// workers.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Blocks until mini-batch t (counted from the start of this pass) is there; valid until release(t).
  virtual Batch acquire(std::int64_t t) = 0;
  virtual void release(std::int64_t t) = 0;
  // Whether acquire(t) would not block, answered after `limit` at most. The engine asks first, so that a
  // device that has failed, and releases nothing any more, is noticed; a source that never waits for a
  // release need not tell.
  virtual bool wait(std::int64_t /*t*/, std::chrono::milliseconds /*limit*/) { return true; }
};

// A tensor of the model by its global name.
struct ModelTensor {
  std::string name;
  Shape shape;          // PyTorch's
  bool trained = true;  // false: state (running statistics)
  int stage = 0;
  Initializer initializer;  // first values; of a state a constant
};

struct StageMemory {  // bytes
  std::size_t weights = 0, gradients = 0, optimizer = 0, predicted = 0, versions = 0, states = 0;
  std::size_t stash = 0, workspace = 0, transfers = 0;
  std::size_t total() const {
    return weights + gradients + optimizer + predicted + versions + states + stash + workspace + transfers;
  }
};

struct LayerInfo {
  std::string name, description;
  Shape output;
  std::int64_t parameters = 0;
};

struct StageInfo {
  int worker = 0;
  Device device;
  std::vector<LayerInfo> layers;
  std::vector<std::string> parameters;  // global names of the trained tensors
  std::int64_t parameter_count = 0;
  int weight_copies = 1;  // full copies of the weights at most, the live one included
  int stash_slots = 1;    // micro-batches in flight at most
  StageMemory memory;
};

// What a stage did, in the order in which it did it: `version` is read from the stage's own counter when the
// work is executed, not from the schedule.
struct VersionRecord {
  int stage;
  std::int64_t minibatch, microbatch;  // counted from the start of training
  char op;                             // 'F', 'B' or 'U'
  std::int64_t version;                // counted from the start of training; U: the version it made
  int horizon;
};

struct StepResult {
  std::int64_t step = 0;  // mini-batch, counted from the start of training
  double loss = 0;        // mean over the labels of the mini-batch
  std::int64_t records = 0;
  std::int64_t labels = 0;  // one or several a record; padding included
  std::int64_t correct = 0;
};

// Loss, records, labels and correct are known where the last stage is; elsewhere they are 0.
struct PassResult {
  double loss = 0;  // mean over the labels
  std::int64_t records = 0;
  std::int64_t labels = 0;
  std::int64_t correct = 0;
  std::int64_t minibatches = 0;  // fewer than asked for where the pass was stopped
  bool stopped = false;          // somebody asked to end here, the same on all processes
  double seconds = 0;

  // Means over the first `whole` of the records: the others fill up the last mini-batch, with a loss of 0.
  double loss_of(std::int64_t whole) const {
    return whole == 0 ? 0 : loss * static_cast<double>(records) / static_cast<double>(whole);
  }
  double accuracy_of(std::int64_t whole) const {
    if (whole == 0 || records == 0) return 0;
    return static_cast<double>(correct) / static_cast<double>(whole * (labels / records));
  }
};

struct StageTiming {         // of one worker: of all stages that it holds
  double busy_seconds = 0;   // F, B, U on the compute stream
  double total_seconds = 0;  // from the first to the last instruction of the pass, over all stages
  // The part of the time that the worker did not work.
  double bubble() const { return total_seconds > 0 ? std::max(0.0, 1 - busy_seconds / total_seconds) : 0; }
};

// One executed piece of work for the Chrome trace.
struct TraceSpan {
  int stage;
  int stream;  // 0 compute, 1 incoming, 2 outgoing
  char name[24];
  double begin_us, end_us;  // since the engine was made
};

// Host stages: whether each worker's threads stay on cores of their own (kernels/runtime/placement.h), as far
// as there are enough.
enum class CpuBinding { kNone, kAuto };

struct EngineConfig {
  Device device = {};
  int devices = 1;  // CUDA: workers are divided, in order, over this many devices from `device` on
  // Several processes, over which the stages are divided evenly and in order; each has one device, and every
  // worker one stage. All make the same engine and the same calls. Outlives the engine.
  ProcessGroup* processes = nullptr;
  int threads = 1;  // of the whole process, divided over the workers (at least one each)
  CpuBinding cpu_binding = CpuBinding::kNone;
  std::string method = "pipeoptim";
  HorizonPolicy horizon = HorizonPolicy::kExact;
  int chunks = 0;                 // stages that each worker holds; 0: the method's default
  int delay = 0;                  // method "delayed": updates between a forward and its backward
  ComputeCosts costs = {};        // method "zb-auto"
  int activation_limit = 0;       // method "zb-auto"; 0: as much as "zb-h2"
  double pipemare_decay = 0.135;  // method "pipemare": of the average weight step, see methods.h
  OptimizerConfig optimizer;
  int microbatches_per_update = 1;
  std::uint64_t seed = 0;
  HostExecution execution = HostExecution::kWorker;    // kInline: the one-queue oracle
  bool trace = false;                                  // keep TraceSpans
  MatrixPrecision precision = MatrixPrecision::kFp32;  // of products and convolutions
  RowKernels row_kernels = RowKernels::kOwn;           // of batch norm and pooling, on CUDA
  // CUDA: the compute instructions of training as CUDA graphs, with the same results; but forwards and
  // backwards of stages that draw random numbers (dropout).
  bool cuda_graph = false;
};

struct TrainPass {
  std::int64_t first_step = 0;  // global index of the pass's first mini-batch
  std::int64_t minibatches = 0;
  std::function<float(std::int64_t)> learning_rate = {};  // of a global step
  std::int64_t anneal_steps = 0;  // method "pipemare": steps of the lower rates, see methods.h
  std::function<bool(const StepResult&)> on_step;  // where the last stage is; in order, from the calling
                                                   // thread; false: end after what is in flight
  std::function<void(const VersionRecord&)> on_version = {};  // after the pass, in order of the stages here
};

class Engine {
 public:
  // `input` is the shape of one mini-batch, {B, ...}. Throws std::invalid_argument where numbers do not fit.
  Engine(EngineConfig config, std::vector<std::vector<NamedLayer>> stages, std::unique_ptr<Loss> loss,
         Shape input);
  ~Engine();

  // Trains one pass and flushes the pipeline. Throws DataError when the loss is not finite.
  PassResult train(BatchSource& source, const TrainPass& pass);
  PassResult evaluate(BatchSource& source, std::int64_t minibatches);

  const std::vector<ModelTensor>& tensors() const;  // of all stages
  bool here(int stage) const;                       // whether the stage is in this process
  // Values in PyTorch's order, blocking, of a stage that is here; shape and size are checked.
  std::vector<float> read_tensor(const std::string& name) const;
  void write_tensor(const std::string& name, std::span<const float> values);
  // Only rows of the first dimension, from `first` on: nobody has to hold all of a large tensor.
  void write_rows(const std::string& name, std::int64_t first, std::span<const float> values);

  std::vector<StageInfo> stage_info() const;
  std::vector<StageTiming> stage_timing() const;  // of the last train(), by worker
  std::vector<OptimizerStatus> optimizer_status() const;
  // Stage and tensor of the last skipped update, for messages: "stage 2, layer3.0.conv1.weight"; empty: none.
  std::string last_skip() const;
  std::vector<TraceSpan> take_trace();
  const Schedule& last_schedule() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pipeoptim
