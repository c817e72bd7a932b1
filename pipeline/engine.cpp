#include "pipeline/engine.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "pipeline/engine_core.h"

namespace pipeoptim {

struct Engine::Impl : EngineCore {
  using EngineCore::EngineCore;
};

Engine::Engine(EngineConfig config, std::vector<std::vector<NamedLayer>> stages, std::unique_ptr<Loss> loss,
               Shape input)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(stages), std::move(loss), input)) {}
Engine::~Engine() {
  if (impl_) impl_->drain();
}

PassResult Engine::train(BatchSource& source, const TrainPass& pass) {
  if (pass.minibatches < 1) throw std::invalid_argument("a training pass needs at least one mini-batch");
  impl_->allocate();
  impl_->use_schedule(pass.minibatches);
  impl_->use_rates(pass);
  PassResult result = run_pass(*impl_, source, impl_->schedule, Mode::kTraining, pass);
  for (std::size_t k = 0; k < impl_->stages.size(); ++k) {
    if (!impl_->lanes[k]) continue;
    Optimizer* optimizer = impl_->stages[k].optimizer();
    Stream& stream = impl_->lanes[k]->streams[kCompute];
    if (optimizer) optimizer->copy_status(stream, &impl_->status[k]);
    stream.synchronize();
  }
  if (impl_->share_results()) result.stopped = true;
  return result;
}

PassResult Engine::evaluate(BatchSource& source, std::int64_t minibatches) {
  impl_->allocate();
  const int micro = impl_->micro();
  Schedule schedule = make_forward_schedule(impl_->depth(), static_cast<int>(minibatches) * micro);
  schedule.microbatches_per_update = micro;
  for (std::size_t k = 0; k < schedule.stages.size(); ++k) {
    for (Instruction& instruction : schedule.stages[k]) {
      instruction.slot = instruction.microbatch % impl_->schedule.slots[k];
      instruction.minibatch = instruction.microbatch / micro;
    }
  }
  return run_pass(*impl_, source, schedule, Mode::kEvaluation, {});
}

const std::vector<ModelTensor>& Engine::tensors() const { return impl_->tensors; }
bool Engine::here(int stage) const { return impl_->here(stage); }

namespace {

struct Place {
  const PlacedTensor* placed = nullptr;
  float* data = nullptr;
  Device device;
};

Place find(EngineCore& core, const std::string& name) {
  for (int k = 0; k < core.depth(); ++k) {
    if (!core.here(k)) continue;
    const Stage& stage = core.stages[static_cast<std::size_t>(k)];
    for (const PlacedTensor& placed : stage.parameters()) {
      if (placed.tensor.name == name) return {&placed, stage.weights() + placed.offset, stage.device()};
    }
    for (const PlacedTensor& placed : stage.states()) {
      if (placed.tensor.name == name) return {&placed, stage.state_values() + placed.offset, stage.device()};
    }
  }
  throw std::invalid_argument("no stage in this process has a tensor named '" + name + "'");
}

// Visits a convolution's weight in PyTorch's order [out,in,kh,kw]: visit(index there, index in
// [out,kh,kw,in]).
template <typename Visit>
void visit_channels_last(const Shape& shape, const Visit& visit) {
  const std::int64_t inner = shape[2] * shape[3];
  for (std::int64_t o = 0, i = 0; o < shape[0]; ++o) {
    for (std::int64_t c = 0; c < shape[1]; ++c) {
      for (std::int64_t position = 0; position < inner; ++position, ++i) {
        visit(static_cast<std::size_t>(i), static_cast<std::size_t>((o * inner + position) * shape[1] + c));
      }
    }
  }
}

}  // namespace

std::vector<float> Engine::read_tensor(const std::string& name) const {
  impl_->allocate();
  const Place place = find(*impl_, name);
  const Shape& shape = place.placed->tensor.shape;
  std::vector<float> stored(static_cast<std::size_t>(shape.elements()));
  copy_to_host(stored.data(), place.data, stored.size() * sizeof(float), place.device);
  if (place.placed->storage == Storage::kRowMajor) return stored;
  std::vector<float> values(stored.size());
  visit_channels_last(shape, [&](std::size_t file, std::size_t arena) { values[file] = stored[arena]; });
  return values;
}

void Engine::write_tensor(const std::string& name, std::span<const float> values) {
  impl_->allocate();
  const Place place = find(*impl_, name);
  const Shape& shape = place.placed->tensor.shape;
  if (static_cast<std::int64_t>(values.size()) != shape.elements()) {
    throw std::invalid_argument("tensor '" + name + "' of shape " + shape.to_string() + " needs " +
                                std::to_string(shape.elements()) + " values, got " +
                                std::to_string(values.size()));
  }
  write_rows(name, 0, values);
}

void Engine::write_rows(const std::string& name, std::int64_t first, std::span<const float> values) {
  impl_->allocate();
  const Place place = find(*impl_, name);
  Shape shape = place.placed->tensor.shape;
  const std::int64_t rows = shape.first(), row = shape.elements() / rows, elements = std::ssize(values);
  if (first < 0 || elements % row != 0 || first + elements / row > rows) {
    throw std::invalid_argument("tensor '" + name + "' of shape " + shape.to_string() + " has no " +
                                std::to_string(elements) + " values in whole rows from row " +
                                std::to_string(first) + " on");
  }
  float* const target = place.data + first * row;
  if (place.placed->storage == Storage::kRowMajor) {
    copy_from_host(target, values.data(), values.size_bytes(), place.device);
    return;
  }
  shape[0] = elements / row;  // rank 4, as it is stored otherwise
  std::vector<float> stored(values.size());
  visit_channels_last(shape, [&](std::size_t file, std::size_t arena) { stored[arena] = values[file]; });
  copy_from_host(target, stored.data(), values.size_bytes(), place.device);
}

std::vector<StageInfo> Engine::stage_info() const {
  std::vector<StageInfo> infos;
  for (std::size_t k = 0; k < impl_->stages.size(); ++k) {
    const Stage& stage = impl_->stages[k];
    StageInfo info;
    info.worker = impl_->schedule.worker_of(static_cast<int>(k));
    info.device = stage.device();
    for (const auto& child : stage.layers().children()) {
      std::int64_t count = 0;
      for (const Parameter& parameter : child.layer->parameters()) count += parameter.shape.elements();
      info.layers.push_back({child.name, child.layer->describe(), child.plan.output, count});
      info.parameter_count += count;
    }
    for (const PlacedTensor& placed : stage.parameters()) info.parameters.push_back(placed.tensor.name);
    info.weight_copies = impl_->version_copies[k];
    info.stash_slots = impl_->schedule.slots[k];
    info.memory = stage.memory();
    infos.push_back(std::move(info));
  }
  return infos;
}

std::vector<StageTiming> Engine::stage_timing() const { return impl_->timing; }
std::vector<OptimizerStatus> Engine::optimizer_status() const { return impl_->status; }

std::string Engine::last_skip() const {
  for (std::size_t k = 0; k < impl_->status.size(); ++k) {
    const OptimizerStatus& status = impl_->status[k];
    if (status.skipped == 0 || status.last_bad_range < 0) continue;
    const auto& parameters = impl_->stages[k].parameters();
    return "stage " + std::to_string(k) + ", " +
           parameters.at(static_cast<std::size_t>(status.last_bad_range)).tensor.name;
  }
  return {};
}

std::vector<TraceSpan> Engine::take_trace() { return std::exchange(impl_->trace, {}); }
const Schedule& Engine::last_schedule() const { return impl_->schedule; }

}  // namespace pipeoptim
