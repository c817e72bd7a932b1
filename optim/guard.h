// What runs before an update: one read of the gradient gives its norm and finds non-finite values, then one
// small kernel moves the step's scalars on. All of it stays on the device: the host never waits to learn
// whether a step was skipped.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include guard.h only from .cu files"
#endif

#include <cmath>
#include <cstdint>

#include "kernels/runtime/launch.h"
#include "optim/optimizer.h"
#include "optim/rule.h"

namespace pipeoptim {

// A piece of the arena that one team works on. Fixed at construction, so that the order of a sum does not
// depend on the number of threads.
struct ArenaChunk {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  float weight_decay = 0;
};

inline constexpr std::int64_t kChunkElements = 8192;

// The scalars of an optimizer, in device memory.
struct StepState {
  OptimizerStatus status;       // first, so that the status is copied from the state's address
  double beta1_power = 1;       // beta1^steps
  double beta2_power = 1;       // beta2^steps
  double beta3_power = 1;       // beta3^steps
  double warmup_power = 1;      // momentum_warmup^steps
  double momentum_product = 1;  // mu_1 .. mu_steps, nadam's mu_product
  StepScalars scalars;          // of the completed steps
  float gradient_scale = 1;     // clipping, of the running step
  std::int32_t skip = 0;        // the running step is skipped
};

// nadam's mu_t, from momentum_warmup^t.
PO_HD double warmed_momentum(const StepDecays& decays, double warmup_power) {
  return decays.beta1 * (1 - 0.5 * warmup_power);
}

// nadam's mu_(t+1) / (1 - mu_1 .. mu_(t+1)) from what holds after t steps.
PO_HD double coming_momentum_gain(const StepDecays& decays, double warmup_power, double momentum_product) {
  const double next = warmed_momentum(decays, warmup_power * decays.momentum_warmup);
  return next / (1 - momentum_product * next);
}

// Powers are multiplied up, never taken by pow(): the same bits on every backend.
PO_HD void complete_step(StepState& state, const StepDecays& decays) {
  ++state.status.steps;
  state.beta1_power *= decays.beta1;
  state.beta2_power *= decays.beta2;
  state.beta3_power *= decays.beta3;
  state.warmup_power *= decays.momentum_warmup;
  const double momentum = warmed_momentum(decays, state.warmup_power);
  state.momentum_product *= momentum;
  StepScalars& scalars = state.scalars;
  scalars.steps = state.status.steps;
  scalars.correction1 = static_cast<float>(1 / (1 - state.beta1_power));
  scalars.correction2 = static_cast<float>(1 / sqrt(1 - state.beta2_power));
  scalars.correction3 = static_cast<float>(1 / (1 - state.beta3_power));
  scalars.gradient_gain = static_cast<float>((1 - momentum) / (1 - state.momentum_product));
  scalars.momentum_gain =
      static_cast<float>(coming_momentum_gain(decays, state.warmup_power, state.momentum_product));
}

struct Sum {
  PO_HD double operator()(double a, double b) const { return a + b; }
};

template <typename T>
PO_HD bool finite(T x) {
  return x - x == 0;
}

// partials[chunk] <- sum of squares, non-finite exactly if one of the chunk's gradients is.
struct GradientSquares {
  using LongRows = void;  // chunks
  const float* gradients;
  const ArenaChunk* chunks;
  double* partials;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const ArenaChunk chunk = chunks[row];
    double sum = fast_sum(chunk, team);
    // fp32 squares overflow at 1.8e19, which is a finite gradient: only then the slow way decides.
    if (!finite(sum)) sum = exact_sum(chunk, team);
    sum = team.reduce(sum, Sum{});
    if (team.rank() == 0) partials[row] = sum;
  }

  template <typename Team>
  PO_HD double exact_sum(const ArenaChunk& chunk, const Team& team) const {
    double sum = 0;
    for (std::int64_t i = chunk.begin + team.rank(); i < chunk.end; i += team.size()) {
      sum += static_cast<double>(gradients[i]) * static_cast<double>(gradients[i]);
    }
    return sum;
  }

  // Few enough fp32 additions per accumulator (at most 256) that the error stays far below that of one
  // gradient.
  template <typename Team>
  PO_HD double fast_sum(const ArenaChunk& chunk, const Team& team) const {
    const float* const g = gradients + chunk.begin;
    const std::int64_t n = chunk.end - chunk.begin;
#if defined(__CUDA_ARCH__)
    // Coalesced in four streams a lane.
    float sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
    const std::int64_t size = team.size();
    std::int64_t i = team.rank();
    for (; i + 3 * size < n; i += 4 * size) {
      sum0 += g[i] * g[i];
      sum1 += g[i + size] * g[i + size];
      sum2 += g[i + 2 * size] * g[i + 2 * size];
      sum3 += g[i + 3 * size] * g[i + 3 * size];
    }
    for (; i < n; i += size) sum0 += g[i] * g[i];
    return (static_cast<double>(sum0) + static_cast<double>(sum1)) +
           (static_cast<double>(sum2) + static_cast<double>(sum3));
#else
    // Lanes of a fixed number, so that the order is the same for vectors of any width.
    static_cast<void>(team);
    constexpr int kLanes = 64;
    float sums[kLanes] = {};
    const std::int64_t tail = n / kLanes * kLanes;
    for (std::int64_t i = 0; i < tail; i += kLanes) {
      PO_SIMD
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += g[i + lane] * g[i + lane];
    }
    double sum = 0;
    for (std::int64_t i = tail; i < n; ++i) sum += static_cast<double>(g[i] * g[i]);
    for (const float lane : sums) sum += static_cast<double>(lane);
    return sum;
#endif
  }
};

// Adds the partial sums up and decides about the step.
struct BeginStep {
  StepState* state;
  const double* partials;
  std::int64_t partial_count;
  const float* gradients;
  const ArenaChunk* chunks;
  const ArenaRange* names;  // extents of the named ranges, ascending
  std::int64_t name_count;
  StepDecays decays;
  double clip_norm;

  template <typename Team>
  PO_HD void operator()(std::int64_t, const Team& team) const {
    double sum = 0;
    for (std::int64_t i = team.rank(); i < partial_count; i += team.size()) sum += partials[i];
    sum = team.reduce(sum, Sum{});
    if (team.rank() != 0) return;
    state->skip = finite(sum) ? 0 : 1;
    if (state->skip != 0) {
      ++state->status.skipped;
      state->status.last_bad_range = bad_range();
      return;
    }
    const double norm = sqrt(sum);
    state->status.gradient_norm = static_cast<float>(norm);
    // As torch.nn.utils.clip_grad_norm_, which keeps clear of a division by zero.
    state->gradient_scale =
        clip_norm > 0 && norm + 1e-6 > clip_norm ? static_cast<float>(clip_norm / (norm + 1e-6)) : 1.0f;
    complete_step(*state, decays);
  }

  // Serial: a step that is skipped may take a millisecond more.
  PO_HD std::int32_t bad_range() const {
    std::int64_t chunk = 0;
    while (chunk < partial_count - 1 && finite(partials[chunk])) ++chunk;
    std::int64_t element = chunks[chunk].begin;
    while (element < chunks[chunk].end - 1 && finite(gradients[element])) ++element;
    for (std::int64_t i = 0; i < name_count; ++i) {
      if (names[i].begin <= element && element < names[i].end) return static_cast<std::int32_t>(i);
    }
    return -1;
  }
};

// Makes the plan of a prediction with zero gradients.
struct PlanCoast {
  const StepState* state;
  CoastPlan* plan;
  StepDecays decays;
  const StepRates* in_memory = nullptr;  // of a repeated step; null: these
  std::int32_t steps = 0;
  float rates[kMaxHorizon] = {};

  PO_HD void operator()(std::int64_t) const {
    double momentum = 1, momentum3 = 1, travel = 0;
    StepState ahead = *state;
    const std::int32_t count = in_memory == nullptr ? steps : in_memory->steps;
    for (int i = 0; i < count; ++i) {
      const float lr = in_memory == nullptr ? rates[i] : in_memory->coming[i];
      momentum *= decays.beta1;
      complete_step(ahead, decays);
      travel += static_cast<double>(lr) * momentum;
      plan->step[i] = {.lr = lr,
                       .momentum = static_cast<float>(momentum),
                       .correction1 = ahead.scalars.correction1,
                       .correction2 = ahead.scalars.correction2,
                       .correction3 = ahead.scalars.correction3,
                       .momentum3 = static_cast<float>(momentum3),
                       .momentum_gain = ahead.scalars.momentum_gain};
      momentum3 *= decays.beta3;
    }
    plan->steps = count;
    plan->momentum_travel = static_cast<float>(travel);
  }
};

// Takes the state of a checkpoint up; the powers are multiplied up as the steps did, for equal bits.
struct RestoreState {
  StepState* state;
  OptimizerStatus status;
  StepDecays decays;

  PO_HD void operator()(std::int64_t) const {
    *state = StepState{};
    for (std::int64_t step = 0; step < status.steps; ++step) complete_step(*state, decays);
    state->status = status;
  }
};

}  // namespace pipeoptim
