// What a pass does with an element: update it by a rule, predict it, or both at once, where the new state is
// still in registers when the predicted weight is computed from it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/runtime/bf16.h"
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

struct RoundElements {
  const float* __restrict__ values;
  Bf16* __restrict__ rounded;

  template <int kWidth>
  PO_HD void at(std::int64_t i) const {
    rounded[i] = to_bf16(values[i]);
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

}  // namespace pipeoptim
