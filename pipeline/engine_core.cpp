#include "pipeline/engine_core.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "pipeline/methods.h"

namespace pipeoptim {

namespace {

// The most updates that lie between a forward and its backward.
int update_gap(const Program& program) {
  std::vector<int> at_forward;
  int updates = 0, most = 0;
  for (const Instruction& i : program) {
    const auto j = static_cast<std::size_t>(i.microbatch);
    if (i.op == Op::kUpdate || i.op == Op::kUpdatePredict) ++updates;
    if (i.op == Op::kForward) {
      at_forward.resize(std::max(at_forward.size(), j + 1));
      at_forward[j] = updates;
    }
    if (i.op == Op::kBackward || i.op == Op::kBackwardInput) most = std::max(most, updates - at_forward[j]);
  }
  return most;
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
  for (int i = 0; i < config.devices; ++i) {
    require_usable({config.device.backend, config.device.ordinal + i});
  }
  make_optimizer(config.device, stage_optimizer(method, config.optimizer, {}),
                 {});  // only to refuse bad hyper-parameters before anything runs

  // Slots and copies of the steady state: a pass longer than any warm-up needs no more than this one.
  schedule = make_schedule(config.method, schedule_request(4 * depth + 2 * config.delay));
  Shape shape = input;
  std::uint64_t random_layer = 0;
  for (int k = 0; k < depth; ++k) {
    const auto index = static_cast<std::size_t>(k);
    const Program& program = schedule.stages[index];
    const bool split = std::any_of(program.begin(), program.end(),
                                   [](const Instruction& i) { return i.op == Op::kBackwardInput; });
    const int worker = schedule.worker_of(k);
    StageOptions options;
    options.device = {config.device.backend, config.device.ordinal + worker * config.devices / workers};
    options.threads = threads_of(worker);
    options.index = k;
    gaps.push_back(update_gap(program));
    options.optimizer =
        stage_optimizer(method, config.optimizer, {gaps.back(), config.horizon, config.pipemare_decay});
    options.split = split ? BackwardSplit::kSplit : BackwardSplit::kJoined;
    options.input = shape;
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

void EngineCore::allocate() {
  if (allocated) return;
  const Device first = device_of(0);
  const Device last = device_of(depth() - 1);
  std::vector<std::shared_ptr<Stream>> compute(static_cast<std::size_t>(workers));
  for (int k = 0; k < depth(); ++k) {
    const auto index = static_cast<std::size_t>(k);
    const int worker = schedule.worker_of(k);
    std::shared_ptr<Stream>& stream = compute[static_cast<std::size_t>(worker)];
    if (!stream) {
      stream = std::make_shared<Stream>(device_of(k), StreamOptions{threads_of(worker), config.execution,
                                                                    "worker" + std::to_string(worker)});
    }
    const Device previous = device_of(std::max(k - 1, 0));
    const Device next = device_of(std::min(k + 1, depth() - 1));
    for (const Device neighbour : {previous, next}) enable_peer_access(device_of(k), neighbour);
    stages[index].allocate();
    lanes.push_back(std::make_unique<StageLane>(LaneOptions{.device = device_of(k),
                                                            .previous = previous,
                                                            .next = next,
                                                            .index = k,
                                                            .slots = schedule.slots[index],
                                                            .compute = stream,
                                                            .execution = config.execution,
                                                            .times_copies = config.trace}));
    lanes.back()->predictions.resize(static_cast<std::size_t>(schedule.predicted_slots[index]));
    lanes.back()->stashed_version.resize(static_cast<std::size_t>(schedule.version_slots[index]));
  }
  label_ring = schedule.slots[0] + depth() + 2;
  enable_peer_access(first, last);  // whose labels come with the inputs of the first stage
  labels = Buffer<std::int32_t>(last, static_cast<std::size_t>(label_ring * microbatch_records));
  for (std::int64_t i = 0; i < label_ring; ++i) {
    label_ready.emplace_back(first);
    label_free.emplace_back(last);
  }
  for (std::int64_t i = 0; i < kResultRing; ++i) result_ready.emplace_back(last);
  loss_sums = Buffer<double>(last, kResultRing, MemoryKind::kPinned);
  correct = Buffer<std::int32_t>(last, kResultRing, MemoryKind::kPinned);
  loss_workspace = Memory(last, loss->workspace_bytes(stages.back().output_shape()));
  status.resize(stages.size());
  timing.resize(static_cast<std::size_t>(workers));
  allocated = true;
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

void EngineCore::drain() noexcept {
  for (auto& lane : lanes) {
    for (const auto& stream : lane->streams.all) {
      try {
        stream->synchronize();
      } catch (...) {  // NOLINT(bugprone-empty-catch): the first error is already on its way to the caller
      }
    }
  }
}

void EngineCore::throw_if_failed() {
  for (auto& lane : lanes) {
    for (const auto& stream : lane->streams.all) stream->throw_if_failed();
  }
}

}  // namespace pipeoptim
