#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "optim/plan.h"

namespace pipeoptim {
namespace {

std::string extent(std::int64_t begin, std::int64_t end) {
  return std::string("[") + std::to_string(begin) + ", " + std::to_string(end) + ")";
}

void validate(const OptimizerArena& arena) {
  const auto refuse = [](const std::string& what) {
    throw std::invalid_argument("optimizer arena: " + what);
  };
  if (arena.elements < 0) refuse("elements is " + std::to_string(arena.elements));
  std::int64_t covered = 0;
  for (const ArenaRange& group : arena.groups) {
    if (group.begin != covered || group.end < group.begin) {
      refuse("group " + extent(group.begin, group.end) + " does not continue at " + std::to_string(covered));
    }
    covered = group.end;
  }
  if (!arena.groups.empty() && covered != arena.elements) {
    refuse("the groups cover " + std::to_string(covered) + " of " + std::to_string(arena.elements) +
           " elements");
  }
  const std::int64_t rounded = arena.rounded_elements;
  if (rounded < 0 || rounded > arena.elements ||
      (rounded % kRoundedMultiple != 0 && rounded != arena.elements)) {
    refuse("rounded_elements is " + std::to_string(rounded) + ", no multiple of " +
           std::to_string(kRoundedMultiple) + " within the " + std::to_string(arena.elements) +
           " elements, nor all of them");
  }
  for (const NamedRange& name : arena.names) {
    if (name.begin < 0 || name.end < name.begin || name.end > arena.elements) {
      refuse("'" + name.name + "' " + extent(name.begin, name.end) + " lies outside of the " +
             std::to_string(arena.elements) + " elements");
    }
    if (name.rows < 0 || (name.rows > 0 && (name.end - name.begin) % name.rows != 0)) {
      refuse("'" + name.name + "' of " + std::to_string(name.end - name.begin) + " elements cannot have " +
             std::to_string(name.rows) + " rows");
    }
  }
}

}  // namespace

std::vector<ArenaRange> arena_groups(const OptimizerArena& arena) {
  return arena.groups.empty() ? std::vector<ArenaRange>{{0, arena.elements, true}} : arena.groups;
}

ArenaChunks::ArenaChunks(Device device, const std::vector<ArenaChunk>& chunks, std::int64_t rounded_elements)
    : chunks_(on_device(device, chunks)),
      rounded_(std::count_if(chunks.begin(), chunks.end(), [rounded_elements](const ArenaChunk& chunk) {
        return chunk.end <= rounded_elements;
      })) {}

void cut(const ArenaRange& range, double weight_decay, std::int64_t rounded_elements,
         std::vector<ArenaChunk>& chunks) {
  for (std::int64_t begin = range.begin, end = begin; begin < range.end; begin = end) {
    end = std::min(begin + kChunkElements, range.end);
    if (begin < rounded_elements) end = std::min(end, rounded_elements);
    chunks.push_back({begin, end, range.decays ? static_cast<float>(weight_decay) : 0.0f});
  }
}

StepPlan::StepPlan(Device device, const OptimizerConfig& config, StepDecays decays, OptimizerArena arena)
    : elements_(arena.elements),
      rounded_elements_(arena.rounded_elements),
      decays_(decays),
      clip_norm_(config.clip_norm) {
  validate(arena);
  const std::vector<ArenaRange> groups = arena_groups(arena);
  std::vector<ArenaChunk> chunks;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    ArenaRange group = groups[i];
    while (i + 1 < groups.size() && groups[i + 1].decays == group.decays) group.end = groups[++i].end;
    cut(group, config.weight_decay, arena.rounded_elements, chunks);
  }
  chunks_ = ArenaChunks(device, chunks, arena.rounded_elements);
  std::vector<ArenaRange> names;
  for (const NamedRange& name : arena.names) names.push_back({name.begin, name.end, true});
  names_ = on_device(device, names);
  partials_ = Buffer<double>(device, chunks.size());
  state_ = on_device(device, std::vector<StepState>(1));
  coast_ = on_device(device, std::vector<CoastPlan>(1));
}

void StepPlan::begin_step(Stream& stream, const float* gradients) {
  const ChunkList list = chunks();
  for_each_row(stream, list.count, kChunkElements, GradientSquares{gradients, list.data, partials_.data()});
  for_each_row(stream, 1, list.count,
               BeginStep{.state = state_.data(),
                         .partials = partials_.data(),
                         .partial_count = list.count,
                         .gradients = gradients,
                         .chunks = list.data,
                         .names = names_.data(),
                         .name_count = static_cast<std::int64_t>(names_.size()),
                         .decays = decays_,
                         .clip_norm = clip_norm_});
}

void StepPlan::plan_coast(Stream& stream, LearningRates rates) {
  PlanCoast body{.state = state_.data(),
                 .plan = coast_.data(),
                 .decays = decays_,
                 .steps = static_cast<std::int32_t>(rates.size())};
  std::copy(rates.begin(), rates.end(), body.rates);
  for_each(stream, 1, body);
}

void StepPlan::plan_coast(Stream& stream, const StepRates* rates) {
  for_each(stream, 1,
           PlanCoast{.state = state_.data(), .plan = coast_.data(), .decays = decays_, .in_memory = rates});
}

void StepPlan::restore(Stream& stream, const OptimizerStatus& from) {
  for_each(stream, 1, RestoreState{state_.data(), from, decays_});
}

void StepPlan::copy_status(Stream& stream, OptimizerStatus* to) {
  stream.copy(to, &state_.data()->status, sizeof(OptimizerStatus));
}

void require_lookahead(Predictor predictor, const Lookahead& ahead) {
  if (std::abs(ahead.distance) > kMaxHorizon) {
    throw std::invalid_argument("a horizon of " + std::to_string(ahead.distance) + " steps exceeds " +
                                std::to_string(kMaxHorizon));
  }
  const bool needs_rates = predictor != Predictor::kDifference && predictor != Predictor::kNone;
  if (needs_rates && ahead.distance != static_cast<int>(ahead.rates.size())) {
    throw std::invalid_argument("a prediction over " + std::to_string(ahead.distance) + " steps was given " +
                                std::to_string(ahead.rates.size()) +
                                " learning rates; only the difference predictor goes without, and back");
  }
}

float travel(Predictor predictor, const Lookahead& ahead) {
  if (predictor == Predictor::kDifference) return static_cast<float>(ahead.distance);
  if (ahead.rates.empty()) return 0;
  if (predictor != Predictor::kScheduleAware) return static_cast<float>(ahead.distance) * ahead.rates[0];
  double sum = 0;
  for (const float rate : ahead.rates) sum += static_cast<double>(rate);
  return static_cast<float>(sum);
}

StepRates make_step_rates(Predictor predictor, float lr, const Lookahead& ahead) {
  require_lookahead(predictor, ahead);
  StepRates rates{
      .lr = lr, .travel = travel(predictor, ahead), .steps = static_cast<std::int32_t>(ahead.rates.size())};
  std::copy(ahead.rates.begin(), ahead.rates.end(), rates.coming);
  return rates;
}

std::int64_t slot_stride(std::int64_t elements) {
  constexpr std::int64_t kLine = 64 / sizeof(float);  // of a cache
  constexpr std::int64_t kLarge = std::int64_t{1} << 20;
  // An odd number of lines beyond 128 KiB: slots at a power-of-two distance share cache sets and memory
  // banks, which makes an AdamW update of 64 M weights twice as slow.
  constexpr std::int64_t kStagger = 2113 * kLine;
  return (elements + kLine - 1) / kLine * kLine + (elements >= kLarge ? kStagger : 0);
}

void require_step_alignment(Device device, std::initializer_list<const void*> arrays) {
  if (device.backend != Backend::kCuda) return;
  for (const void* array : arrays) {
    if (!allow_packs(array)) {
      throw std::invalid_argument("the optimizer's arenas on CUDA must be aligned to 16 bytes");
    }
  }
}

}  // namespace pipeoptim
