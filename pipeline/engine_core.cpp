#include "pipeline/engine_core.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/runtime/placement.h"
#include "pipeline/edge.h"
#include "pipeline/methods.h"
#include "pipeline/processes/peer_links.h"

namespace pipeoptim {
namespace {

void require_short_horizons(const Schedule& schedule, Predictor predictor) {
  if (predictor == Predictor::kNone) return;
  for (std::size_t k = 0; k < schedule.stages.size(); ++k) {
    for (const Instruction& i : schedule.stages[k]) {
      if (std::abs(i.horizon) <= kMaxHorizon) continue;
      throw std::invalid_argument("stage " + std::to_string(k) + " would predict " +
                                  std::to_string(std::abs(i.horizon)) + " updates ahead; the most is " +
                                  std::to_string(kMaxHorizon));
    }
  }
}

}  // namespace

EngineCore::EngineCore(EngineConfig engine_config, std::vector<std::vector<NamedLayer>> layers,
                       std::unique_ptr<Loss> stage_loss, const Shape& minibatch)
    : config(std::move(engine_config)),
      loss(std::move(stage_loss)),
      input(minibatch),
      minibatch_records(minibatch[0]) {
  if (layers.empty()) throw std::invalid_argument("a pipeline needs at least one stage");
  if (config.threads < 1)
    throw std::invalid_argument("threads must be at least 1, got " + std::to_string(config.threads));
  if (micro() < 1)
    throw std::invalid_argument("micro-batches must be at least 1, got " + std::to_string(micro()));
  if (minibatch_records % micro() != 0) {
    throw std::invalid_argument("the mini-batch of " + std::to_string(minibatch_records) +
                                " records cannot be divided into " + std::to_string(micro()) +
                                " micro-batches");
  }
  microbatch_records = minibatch_records / micro();
  input[0] = microbatch_records;
  const int depth = static_cast<int>(layers.size());
  const Method& method = find_method(config.method);
  const int chunks = chunks_of(method, config.chunks);
  if (depth % chunks != 0) {
    throw std::invalid_argument(std::to_string(depth) + " stages cannot be divided into " +
                                std::to_string(chunks) + " for each worker");
  }
  workers = depth / chunks;
  if (config.devices < 1 || config.devices > workers) {
    throw std::invalid_argument(std::to_string(workers) + " workers cannot be divided over " +
                                std::to_string(config.devices) + " devices");
  }
  if (config.cuda_graph && config.device.backend != Backend::kCuda) {
    throw std::invalid_argument("CUDA graphs need a CUDA device, not " + to_string(config.device));
  }
  divide_stages(depth);
  for (int i = 0; i < config.devices; ++i) {
    require_usable({config.device.backend, config.device.ordinal + i});
  }
  make_optimizer(config.device, stage_optimizer(method, config.optimizer, {}),
                 {});  // only to refuse bad hyper-parameters before anything runs

  // Slots and copies of the steady state: a pass longer than any warm-up needs no more than this one.
  schedule = make_schedule(config.method, schedule_request(4 * depth + 2 * config.delay));
  require_short_horizons(schedule, config.optimizer.predictor);
  gaps = schedule.gaps;
  Shape shape = input;
  std::uint64_t random_layer = 0;
  // Of the whole model, so that results do not depend on where it is cut.
  std::vector<Layer*> model;
  for (const auto& stage : layers) {
    for (const NamedLayer& named : stage) {
      require_layer(named);
      model.push_back(named.layer.get());
    }
  }
  const std::vector<ElementType> types = agree_on_types(model, config.precision, {});
  std::size_t first_layer = 0;
  for (int k = 0; k < depth; ++k) {
    const auto index = static_cast<std::size_t>(k);
    const int worker = schedule.worker_of(k);
    StageOptions options;
    options.device = {config.device.backend, config.device.ordinal + worker * config.devices / workers};
    options.threads = threads_of(worker);
    options.index = k;
    options.optimizer =
        stage_optimizer(method, config.optimizer, {gaps[index], config.horizon, config.pipemare_decay});
    options.split = splits_backward(schedule.stages[index]) ? BackwardSplit::kSplit : BackwardSplit::kJoined;
    options.precision = config.precision;
    options.row_kernels = config.row_kernels;
    options.input = shape;
    options.types = {types[first_layer], types[first_layer + layers[index].size()]};
    first_layer += layers[index].size();
    options.slots = schedule.slots[index];
    options.version_slots = schedule.version_slots[index];
    options.predicted_slots = schedule.predicted_slots[index];
    options.seed = config.seed;
    options.first_random_layer = random_layer;
    version_copies.push_back(1 + options.version_slots + options.predicted_slots);
    stages.emplace_back(std::move(options), std::move(layers[index]));
    random_layer += static_cast<std::uint64_t>(stages.back().random_layers());
    shape = stages.back().output_shape();
  }
  record_labels = shape.elements() / shape.last() / microbatch_records;
  for (const Stage& stage : stages) {
    for (const PlacedTensor& placed : stage.parameters()) tensors.push_back(placed.tensor);
    for (const PlacedTensor& placed : stage.states()) tensors.push_back(placed.tensor);
  }
}

ScheduleRequest EngineCore::schedule_request(std::int64_t minibatches) const {
  return {.workers = workers,
          .minibatches = static_cast<int>(minibatches),
          .microbatches_per_update = micro(),
          .horizon = config.horizon,
          .chunks = config.chunks,
          .delay = config.delay,
          .costs = config.costs,
          .activation_limit = config.activation_limit};
}

// The host's threads are divided over the workers; the first workers get what is left over.
int EngineCore::threads_of(int worker) const {
  return std::max(1, config.threads / workers + (worker < config.threads % workers ? 1 : 0));
}

EngineCore::~EngineCore() = default;

void EngineCore::divide_stages(int depth) {
  end_here = depth;
  if (config.processes == nullptr) return;
  const int processes = config.processes->size();
  if (config.device.backend != Backend::kCuda) {
    throw std::invalid_argument("stages in several processes need CUDA devices");
  }
  if (depth % processes != 0 || config.devices != 1) {
    throw std::invalid_argument(std::to_string(depth) + " stages cannot be divided over " +
                                std::to_string(processes) + " processes of one device each");
  }
  if (workers != depth) {
    throw std::invalid_argument(config.method + " with several stages on a worker runs in one process only");
  }
  const int stages_each = depth / processes;
  first_here = config.processes->rank() * stages_each;
  end_here = first_here + stages_each;
}

void EngineCore::allocate() {
  if (allocated) return;
  lanes.resize(stages.size());
  std::vector<std::shared_ptr<Stream>> compute(static_cast<std::size_t>(workers));
  std::vector<std::vector<int>> places = worker_places();
  places.resize(compute.size());
  for (int k = first_here; k < end_here; ++k) {
    const int worker = schedule.worker_of(k);
    std::shared_ptr<Stream>& stream = compute[static_cast<std::size_t>(worker)];
    if (!stream) {
      const std::string name = "worker" + std::to_string(worker);
      stream = std::make_shared<Stream>(
          device_of(k), StreamOptions{.threads = threads_of(worker),
                                      .execution = config.execution,
                                      .name = name,
                                      .processors = places[static_cast<std::size_t>(worker)]});
    }
    allocate_lane(k, stream);
  }
  label_ring = schedule.slots[0] + depth() + 2;
  if (last_is_here()) allocate_loss();
  status.resize(stages.size());
  timing.resize(static_cast<std::size_t>(workers));
  connect();
  allocated = true;
}

// The processors of each worker; none where they are not bound, or OpenMP was asked to do it.
std::vector<std::vector<int>> EngineCore::worker_places() const {
  if (config.cpu_binding == CpuBinding::kNone || config.device.backend != Backend::kHost) return {};
  for (const char* variable : {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"}) {
    if (std::getenv(variable) != nullptr) return {};
  }
  std::vector<int> threads;
  for (int worker = 0; worker < workers; ++worker) threads.push_back(threads_of(worker));
  return place_workers(usable_machine_cores(), threads);
}

void EngineCore::allocate_lane(int k, std::shared_ptr<Stream> compute) {
  const auto index = static_cast<std::size_t>(k);
  const Device previous = device_of(std::max(k - 1, 0));
  const Device next = device_of(std::min(k + 1, depth() - 1));
  for (const Device neighbour : {previous, next}) enable_peer_access(device_of(k), neighbour);
  if (config.cpu_binding == CpuBinding::kAuto && config.device.backend == Backend::kHost) {
    // By the worker, so that the memory is near to its cores.
    compute->submit([stage = &stages[index]] { stage->allocate(); });
    compute->synchronize();
  } else {
    stages[index].allocate();
  }
  lanes[index] = std::make_unique<StageLane>(LaneOptions{.device = device_of(k),
                                                         .previous = previous,
                                                         .next = next,
                                                         .index = k,
                                                         .slots = schedule.slots[index],
                                                         .compute = std::move(compute),
                                                         .execution = config.execution,
                                                         .times_copies = config.trace,
                                                         .graphs = config.cuda_graph});
  lanes[index]->predictions.resize(static_cast<std::size_t>(schedule.predicted_slots[index]));
  lanes[index]->stashed_version.resize(static_cast<std::size_t>(schedule.version_slots[index]));
}

// The labels come with the inputs of the first stage where that is here, else on a stream of the last one.
void EngineCore::allocate_loss() {
  const Device last = device_of(depth() - 1);
  const Device loading = here(0) ? device_of(0) : last;
  enable_peer_access(loading, last);
  labels = Buffer<std::int32_t>(last, static_cast<std::size_t>(label_ring * microbatch_labels()));
  for (std::int64_t i = 0; i < label_ring; ++i) {
    label_ready.emplace_back(loading);
    label_free.emplace_back(last);
  }
  for (std::int64_t i = 0; i < kResultRing; ++i) result_ready.emplace_back(last);
  loss_sums = Buffer<double>(last, kResultRing, MemoryKind::kPinned);
  correct = Buffer<std::int32_t>(last, kResultRing, MemoryKind::kPinned);
  loss_workspace = Memory(last, loss->workspace_bytes(stages.back().output_shape()));
  if (config.cuda_graph) repeated_loss.emplace(last, microbatch_labels());
}

void EngineCore::connect() {
  if (config.processes != nullptr) links = make_nccl_links(*config.processes, config.device);
  activation_edges.resize(stages.size());
  gradient_edges.resize(stages.size());
  for (int k = 0; k + 1 < depth(); ++k) {
    const auto index = static_cast<std::size_t>(k);
    activation_edges[index] = make_edge(*this, Payload::kActivation, k, k + 1);
    gradient_edges[index + 1] = make_edge(*this, Payload::kGradient, k + 1, k);
  }
}

void EngineCore::use_schedule(std::int64_t minibatches) {
  if (minibatches == schedule_length) return;
  schedule = make_schedule(config.method, schedule_request(minibatches));
  schedule_length = minibatches;
}

void EngineCore::use_rates(const TrainPass& pass) {
  const Method& method = find_method(config.method);
  int farthest = 0;
  for (const Program& program : schedule.stages) {
    for (const Instruction& instruction : program) farthest = std::max(farthest, instruction.horizon);
  }
  rates.resize(stages.size());
  for (std::size_t k = 0; k < rates.size(); ++k) {
    rates[k].resize(static_cast<std::size_t>(pass.minibatches + farthest));
    for (std::size_t i = 0; i < rates[k].size(); ++i) {
      const std::int64_t step = pass.first_step + static_cast<std::int64_t>(i);
      rates[k][i] = pass.learning_rate(step) * rate_factor(method, gaps[k], step, pass.anneal_steps);
    }
  }
}

void EngineCore::synchronize() {
  for (auto& lane : lanes) {
    if (!lane) continue;
    for (const auto& stream : lane->streams.all) stream->synchronize();
  }
  for (auto* edges : {&activation_edges, &gradient_edges}) {
    for (auto& edge : *edges) {
      if (edge) edge->synchronize();
    }
  }
  if (links) links->throw_if_failed();
}

void EngineCore::drain() noexcept {
  const auto quietly = [](auto&& wait) {
    try {
      wait();
    } catch (...) {  // NOLINT(bugprone-empty-catch): the first error is already on its way to the caller
    }
  };
  for (auto& lane : lanes) {
    if (!lane) continue;
    for (const auto& stream : lane->streams.all) quietly([&] { stream->synchronize(); });
  }
  for (auto* edges : {&activation_edges, &gradient_edges}) {
    for (auto& edge : *edges) {
      if (edge) quietly([&] { edge->synchronize(); });
    }
  }
}

void EngineCore::throw_if_failed() {
  if (links) links->throw_if_failed();
  for (auto& lane : lanes) {
    if (!lane) continue;
    for (const auto& stream : lane->streams.all) stream->throw_if_failed();
  }
  for (auto* edges : {&activation_edges, &gradient_edges}) {
    for (auto& edge : *edges) {
      if (edge) edge->throw_if_failed();
    }
  }
}

void EngineCore::abandon(const char* reason) noexcept {
  if (!links) return;
  config.processes->fail(reason);
  links->abandon();
}

bool EngineCore::share_results() {
  if (config.processes == nullptr) return false;
  struct Result {
    OptimizerStatus status;
    StageTiming timing;
    bool stopping = false;
  };
  std::vector<Result> mine;
  for (int k = first_here; k < end_here; ++k) {
    const auto index = static_cast<std::size_t>(k);
    mine.push_back({status[index], timing[index], config.processes->stopping()});
  }
  bool stopping = false;
  std::size_t k = 0;
  for (const auto& bytes : config.processes->all_gather(std::as_bytes(std::span(mine)))) {
    for (std::size_t at = 0; at + sizeof(Result) <= bytes.size(); at += sizeof(Result), ++k) {
      Result result;
      std::memcpy(&result, bytes.data() + at, sizeof(Result));
      status.at(k) = result.status;
      timing.at(k) = result.timing;
      stopping = stopping || result.stopping;
    }
  }
  return stopping;
}

}  // namespace pipeoptim
