// The passes over a stage's elements that a rule is made into: the update, the prediction, and both in one,
// where the new state is still in registers when the predicted weight is computed from it.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/host/uncached.h"
#include "kernels/runtime/pack.h"
#include "optim/guard.h"
#include "optim/plan.h"
#include "optim/rule.h"

namespace pipeoptim {

enum class Update {
  kNone,
  kStep,
  kTrackedStep  // which the running average of the weights' steps takes in
};
enum class Prediction { kNone, kCopy, kLinear, kGeometric, kDifference };

template <typename Rule>
struct StepArguments {
  Rule rule;
  const StepState* state;
  const ArenaChunk* chunks = nullptr;  // of the launch
  const CoastPlan* coast;
  float* slots;
  std::int64_t slot_stride;
  float* step_average;  // null where none is kept
  float step_decay;
  float one_minus_step_decay;
  float* weights;
  const float* gradients;
  float* predicted;  // where element 0 would lie: the first ones are in `rounded`
  Bf16* rounded;
  float lr;
  float travel;                // what multiplies the direction, or the average step
  const StepRates* in_memory;  // of a repeated step; null: lr and travel above
  bool uncached = false;       // the host writes predictions past its caches
};

// Where element 0 of an array would lie whose element `first` lies at `address`.
template <typename T>
PO_HD T* counted_from(std::int64_t first, T* address) {
  const auto bytes = static_cast<std::uintptr_t>(first) * sizeof(T);
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(address) - bytes);
}

// An element of the predicted copy: fp32, or bf16.
template <typename Ahead>
PO_HD Ahead stored_as(float value) {
  if constexpr (std::is_same_v<Ahead, Bf16>) {
    return to_bf16(value);
  } else {
    return value;
  }
}

// The elements of one chunk; the scalars are in registers and nothing depends on the element any more.
template <typename Rule, Update kUpdate, Prediction kPrediction, typename Ahead>
struct StepElements {
  static constexpr bool kUpdates = kUpdate != Update::kNone;
  static constexpr bool kTracks = kUpdate == Update::kTrackedStep;
  static constexpr bool kReadsSlots =
      kUpdates || kPrediction == Prediction::kLinear || kPrediction == Prediction::kGeometric;
  static constexpr bool kReadsAverage = kTracks || kPrediction == Prediction::kDifference;
  // Elements of an access on CUDA: where many arrays are in registers at once, fours would spill.
  static constexpr int kPack = Rule::kSlots + (kTracks ? 1 : 0) > 3 ? 2 : 4;

  Rule rule;
  const CoastPlan* coast;
  float* __restrict__ slots;
  std::int64_t slot_stride;
  float* __restrict__ step_average;
  float step_decay;
  float one_minus_step_decay;
  float* __restrict__ weights;
  const float* __restrict__ gradients;
  Ahead* __restrict__ predicted;
  StepNow now;
  float gradient_scale;
  float travel;

  template <int kWidth>
  PO_HD void at(std::int64_t i) const {
    using P = Pack<kWidth>;
    P weight = load_pack<kWidth>(weights + i);
    P gradient{}, average{};
    Pack<kWidth, Ahead> ahead;
    P state[Rule::kSlots];
    if constexpr (kUpdates) gradient = load_pack<kWidth>(gradients + i);
    if constexpr (kReadsAverage) average = load_pack<kWidth>(step_average + i);
    if constexpr (kReadsSlots) {
      for (int slot = 0; slot < Rule::kSlots; ++slot) {
        state[slot] = load_pack<kWidth>(slots + slot * slot_stride + i);
      }
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      float own[Rule::kSlots];
      if constexpr (kReadsSlots) {
        for (int slot = 0; slot < Rule::kSlots; ++slot) own[slot] = state[slot].value[lane];
      }
      const float before = weight.value[lane];
      float w = before;
      if constexpr (kUpdates) {
        w = rule.advance(before, gradient_scale * gradient.value[lane], own, now);
        weight.value[lane] = w;
        for (int slot = 0; slot < Rule::kSlots; ++slot) state[slot].value[lane] = own[slot];
      }
      if constexpr (kTracks) {
        average.value[lane] = step_decay * average.value[lane] + one_minus_step_decay * (w - before);
      }
      if constexpr (kPrediction != Prediction::kNone) {
        ahead.value[lane] = stored_as<Ahead>(ahead_of(w, own, average.value[lane]));
      }
    }
    if constexpr (kUpdates) {
      store_pack(weights + i, weight);
      for (int slot = 0; slot < Rule::kSlots; ++slot) store_pack(slots + slot * slot_stride + i, state[slot]);
    }
    if constexpr (kTracks) store_pack(step_average + i, average);
    if constexpr (kPrediction != Prediction::kNone) store_pack(predicted + i, ahead);
  }

  PO_HD float ahead_of(float w, const float* own, float average) const {
    if constexpr (kPrediction == Prediction::kLinear) {
      return w - travel * rule.direction(own, now.scalars);
    } else if constexpr (kPrediction == Prediction::kDifference) {
      return w + travel * average;
    } else if constexpr (kPrediction == Prediction::kGeometric && CoastsByStep<Rule>) {
      for (int step = 0; step < coast->steps; ++step) {
        w = rule.coast_step(w, own, coast->step[step], now.weight_decay);
      }
      return w;
    } else if constexpr (kPrediction == Prediction::kGeometric) {
      return rule.coast(w, own, *coast, now.weight_decay);
    } else {
      return w;
    }
  }
};

// One coming step of all elements of a chunk, in place in the predicted weights.
template <typename Rule>
struct CoastElements {
  Rule rule;
  const float* __restrict__ slots;
  std::int64_t slot_stride;
  float* __restrict__ predicted;
  CoastStep step;
  float weight_decay;

  template <int kWidth>
  PO_HD void at(std::int64_t i) const {
    float own[Rule::kSlots];
    for (int slot = 0; slot < Rule::kSlots; ++slot) own[slot] = slots[slot * slot_stride + i];
    predicted[i] = rule.coast_step(predicted[i], own, step, weight_decay);
  }
};

template <typename Ahead>
struct StoreElements {
  const float* __restrict__ values;
  Ahead* __restrict__ stored;

  template <int kWidth>
  PO_HD void at(std::int64_t i) const {
    stored[i] = stored_as<Ahead>(values[i]);
  }
};

// Calls elements.at() for all of [begin, end): on CUDA in packs where the address allows.
template <typename Elements, typename Team>
PO_HD void for_all_elements(const Elements& elements, std::int64_t begin, std::int64_t end,
                            const Team& team) {
#if defined(__CUDA_ARCH__)
  constexpr int kPack = Elements::kPack;
  const std::int64_t aligned = (begin + kPack - 1) / kPack * kPack;
  const std::int64_t head = aligned < end ? aligned : end;
  const std::int64_t tail = head + (end - head) / kPack * kPack;
  const std::int64_t rank = team.rank(), size = team.size();
  for (std::int64_t i = begin + rank; i < head; i += size) elements.template at<1>(i);
  for (std::int64_t i = head + kPack * rank; i < tail; i += kPack * size) elements.template at<kPack>(i);
  for (std::int64_t i = tail + rank; i < end; i += size) elements.template at<1>(i);
#else
  static_cast<void>(team);
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) elements.template at<1>(i);
#endif
}

// The body of all passes, over chunks whose predicted elements are of one type. What a step has decided on
// the device (skipped, or none completed yet) is looked up once a chunk and chooses the loop.
template <typename Rule, Update kUpdate, Prediction kPrediction, typename Ahead>
struct StepBody {
  using LongRows = void;  // chunks
  StepArguments<Rule> arguments;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const StepState& state = *arguments.state;
    const bool updates = kUpdate != Update::kNone && state.skip == 0;
    if (updates) {
      run<kUpdate, kPrediction>(row, team);  // completes a step, so that there is a direction
    } else if constexpr (kPrediction != Prediction::kNone) {
      if (state.scalars.steps == 0) {
        run<Update::kNone, Prediction::kCopy>(row, team);
      } else {
        run<Update::kNone, kPrediction>(row, team);
      }
    }
  }

  template <Update kUpdateNow, Prediction kPredictionNow, typename Team>
  PO_HD void run(std::int64_t row, const Team& team) const {
    const ArenaChunk chunk = arguments.chunks[row];
#if !defined(__CUDA_ARCH__)
    if constexpr (kPredictionNow != Prediction::kNone) {
      constexpr bool kCoasts = kPredictionNow == Prediction::kGeometric && CoastsByStep<Rule>;
      if (kCoasts || arguments.uncached) return run_by_blocks<kUpdateNow, kPredictionNow>(chunk, team);
    }
#endif
    for_all_elements(elements<kUpdateNow, kPredictionNow>(chunk, ahead()), chunk.begin, chunk.end, team);
  }

  template <Update kUpdateNow, Prediction kPredictionNow, typename Stored>
  PO_HD StepElements<Rule, kUpdateNow, kPredictionNow, Stored> elements(const ArenaChunk& chunk,
                                                                        Stored* predicted) const {
    const StepArguments<Rule>& a = arguments;
    return {a.rule,
            a.coast,
            a.slots,
            a.slot_stride,
            a.step_average,
            a.step_decay,
            a.one_minus_step_decay,
            a.weights,
            a.gradients,
            predicted,
            {a.state->scalars, a.in_memory == nullptr ? a.lr : a.in_memory->lr, chunk.weight_decay},
            a.state->gradient_scale,
            a.in_memory == nullptr ? a.travel : a.in_memory->travel};
  }

  PO_HD Ahead* ahead() const {
    if constexpr (std::is_same_v<Ahead, Bf16>) {
      return arguments.rounded;
    } else {
      return arguments.predicted;
    }
  }

#if !defined(__CUDA_ARCH__)
  // On the host: predictions that are not written where they belong at once, but first into a block that
  // stays in the cache.
  static constexpr std::int64_t kBlockElements = 256;

  template <Update kUpdateNow, Prediction kPredictionNow, typename Team>
  PO_HD void run_by_blocks(const ArenaChunk& chunk, const Team& team) const {
    ArenaChunk block = chunk;
    for (; block.begin < chunk.end; block.begin = block.end) {
      block.end = block.begin + kBlockElements < chunk.end ? block.begin + kBlockElements : chunk.end;
      const auto bytes = static_cast<std::size_t>(block.end - block.begin) * sizeof(Ahead);
      alignas(64) Ahead values[kBlockElements];
      fill<kUpdateNow, kPredictionNow>(block, team, counted_from(block.begin, values));
      if (arguments.uncached) {
        host::copy_uncached(ahead() + block.begin, values, bytes);
      } else {
        std::memcpy(ahead() + block.begin, values, bytes);
      }
    }
    if (arguments.uncached) host::end_uncached();
  }

  template <Update kUpdateNow, Prediction kPredictionNow, typename Team>
  PO_HD void fill(const ArenaChunk& block, const Team& team, Ahead* values) const {
    if constexpr (kPredictionNow == Prediction::kGeometric && CoastsByStep<Rule>) {
      // In loops over the block; the same operations in the same order, in fp32 until the last step.
      float unrounded[kBlockElements];
      float* const coasting = counted_from(block.begin, unrounded);
      for_all_elements(elements<kUpdateNow, Prediction::kCopy>(block, coasting), block.begin, block.end,
                       team);
      for (int i = 0; i < arguments.coast->steps; ++i) {
        const CoastElements<Rule> step{arguments.rule, arguments.slots,          arguments.slot_stride,
                                       coasting,       arguments.coast->step[i], block.weight_decay};
        for_all_elements(step, block.begin, block.end, team);
      }
      for_all_elements(StoreElements<Ahead>{coasting, values}, block.begin, block.end, team);
    } else {
      for_all_elements(elements<kUpdateNow, kPredictionNow>(block, values), block.begin, block.end, team);
    }
  }
#endif
};

// One launch over the chunks of each type that the predicted elements have.
template <typename Rule, Update kUpdate, Prediction kPrediction>
void launch_body(Stream& stream, ChunkList chunks, StepArguments<Rule> given) {
  given.chunks = chunks.data;
  const std::int64_t most_elements = chunks.count * kChunkElements;
  given.uncached = float_bytes(most_elements) >= host::kUncachedBytes;
  if constexpr (kPrediction != Prediction::kNone) {
    for_each_row(stream, chunks.rounded, kChunkElements, StepBody<Rule, kUpdate, kPrediction, Bf16>{given});
    given.chunks += chunks.rounded;
    chunks.count -= chunks.rounded;
  }
  for_each_row(stream, chunks.count, kChunkElements, StepBody<Rule, kUpdate, kPrediction, float>{given});
}

template <typename Rule, Update kUpdate>
void launch_update(Stream& stream, const ChunkList& chunks, Prediction prediction,
                   const StepArguments<Rule>& given) {
  // A step is tracked for the predictor that needs it, and for no other.
  constexpr bool kDirection = kUpdate != Update::kTrackedStep, kAverage = kUpdate != Update::kStep;
  switch (prediction) {
    case Prediction::kNone:
      if constexpr (kUpdate != Update::kNone) {
        return launch_body<Rule, kUpdate, Prediction::kNone>(stream, chunks, given);
      }
      break;
    case Prediction::kCopy:
      return launch_body<Rule, kUpdate, Prediction::kCopy>(stream, chunks, given);
    case Prediction::kLinear:
      if constexpr (kDirection) return launch_body<Rule, kUpdate, Prediction::kLinear>(stream, chunks, given);
      break;
    case Prediction::kGeometric:
      if constexpr (kDirection) {
        return launch_body<Rule, kUpdate, Prediction::kGeometric>(stream, chunks, given);
      }
      break;
    case Prediction::kDifference:
      if constexpr (kAverage) {
        return launch_body<Rule, kUpdate, Prediction::kDifference>(stream, chunks, given);
      }
      break;
  }
  throw std::logic_error("an optimizer's pass that no predictor has");
}

// The pass over `chunks`.
template <typename Rule>
void launch_pass(Stream& stream, const ChunkList& chunks, Update update, Prediction prediction,
                 const StepArguments<Rule>& given) {
  switch (update) {
    case Update::kNone:
      return launch_update<Rule, Update::kNone>(stream, chunks, prediction, given);
    case Update::kStep:
      return launch_update<Rule, Update::kStep>(stream, chunks, prediction, given);
    case Update::kTrackedStep:
      return launch_update<Rule, Update::kTrackedStep>(stream, chunks, prediction, given);
  }
}

}  // namespace pipeoptim
