// The rules: one struct per optimizer, per element, in registers. A rule is written once; step.h makes the
// update, the prediction and both in one pass out of it. A user's rule has the same members:
//
//   kSlots, kSlotNames               state arrays and what checkpoints call them
//   advance(w, g, slots, now)        the new weight; leaves the new state in `slots`
//   direction(slots, now)            what the linear predictors multiply by the learning rate; a function of
//   the
//                                    state alone, so that a prediction needs no gradient
//   coast(w, slots, ahead, decay)    the weight after `ahead.steps` more steps with zero gradients;
//     or coast_step(w, slots, step, decay)  the weight after the one coming step that `step` describes
//
// Everything is fp32 in a fixed order of operations (no contraction, no fast maths): the same bits in every
// pass and on every backend. All formulas are PyTorch's.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/runtime/macros.h"
#include "optim/optimizer.h"

namespace pipeoptim {

// What changes from step to step but not from element to element. `steps` counts completed steps; in
// advance() it includes the running one.
struct StepScalars {
  std::int64_t steps = 0;
  float correction1 = 1;  // 1 / (1 - beta1^steps)
  float correction2 = 1;  // 1 / sqrt(1 - beta2^steps)
};

struct StepNow {
  StepScalars scalars;
  float lr = 0;
  float weight_decay = 0;  // of the element's group
};

// The coming steps i = 1..steps of a prediction with zero gradients, after t completed ones.
struct CoastStep {
  float lr = 0;
  float momentum = 1;     // beta1^i
  float correction1 = 1;  // 1 / (1 - beta1^(t+i))
  float correction2 = 1;  // 1 / sqrt(1 - beta2^(t+i))
};
struct CoastPlan {
  std::int32_t steps = 0;
  float momentum_travel = 0;  // sum of lr_i beta1^i; at equal rates lr (u - u^(steps+1)) / (1 - u), u = beta1
  CoastStep step[kMaxHorizon];
};

// A rule that coasts step by step, the state standing still: the host then runs the steps as whole loops over
// the elements, which vectorize, where a loop within every element does not.
template <typename Rule>
concept CoastsByStep = requires(const Rule& rule, const CoastStep& step) {
  rule.coast_step(0.0f, static_cast<const float*>(nullptr), step, 0.0f);
};

// w <- w - lr g
struct Sgd {
  static constexpr int kSlots = 1;
  static constexpr const char* kSlotNames[kSlots] = {"last_gradient"};

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    slots[0] = g + now.weight_decay * w;
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[0]; }
  PO_HD float coast(float w, const float*, const CoastPlan&, float) const { return w; }
};

// m <- u m + (1 - tau) g, but m <- g in the first step; w <- w - lr m
struct SgdMomentum {
  static constexpr int kSlots = 1;
  static constexpr const char* kSlotNames[kSlots] = {"momentum_buffer"};
  float momentum = 0.9f;
  float one_minus_dampening = 1;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gain = now.scalars.steps == 1 ? 1.0f : one_minus_dampening;  // the buffer starts at zero
    slots[0] = momentum * slots[0] + gain * (g + now.weight_decay * w);
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[0]; }
  PO_HD float coast(float w, const float* slots, const CoastPlan& ahead, float) const {
    return w - ahead.momentum_travel * slots[0];
  }
};

// m <- u m + g; w <- w - lr (g + u m). The applied direction is kept: it cannot be had from m alone.
struct Nesterov {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"momentum_buffer", "applied_direction"};
  float momentum = 0.9f;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gradient = g + now.weight_decay * w;
    slots[0] = momentum * slots[0] + gradient;
    slots[1] = gradient + momentum * slots[0];
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[1]; }
  // Each coming step applies u times its decayed buffer.
  PO_HD float coast(float w, const float* slots, const CoastPlan& ahead, float) const {
    return w - ahead.momentum_travel * (momentum * slots[0]);
  }
};

// The moments that Adam and AdamW share.
struct AdamMoments {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"exp_avg", "exp_avg_sq"};
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float one_minus_beta1 = 0.1f;
  float one_minus_beta2 = 0.001f;
  float eps = 1e-8f;

  PO_HD void accumulate(float g, float* slots) const {
    slots[0] = beta1 * slots[0] + one_minus_beta1 * g;
    slots[1] = beta2 * slots[1] + one_minus_beta2 * (g * g);
  }
  // mhat / (sqrt(vhat) + eps)
  PO_HD float direction(const float* slots, const StepScalars& at) const {
    return (slots[0] * at.correction1) / (sqrtf(slots[1]) * at.correction2 + eps);
  }
  // Step i of a coasting weight: m decays to beta1^i m, v stays, the corrections are those of step t+i.
  PO_HD float coasting_direction(const float* slots, const CoastStep& at) const {
    return (at.momentum * slots[0] * at.correction1) / (sqrtf(slots[1]) * at.correction2 + eps);
  }
};

// Weight decay is added to the gradient.
struct Adam : AdamMoments {
  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    accumulate(g + now.weight_decay * w, slots);
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float) const {
    return w - step.lr * coasting_direction(slots, step);
  }
};

// Weight decay is apart from the gradient: w <- w - lr decay w, then Adam's step.
struct AdamW : AdamMoments {
  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    accumulate(g, slots);
    return decayed(w, now.lr, now.weight_decay) - now.lr * direction(slots, now.scalars);
  }
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float weight_decay) const {
    return decayed(w, step.lr, weight_decay) - step.lr * coasting_direction(slots, step);
  }
  // Not w * (1 - lr decay): that factor loses half of the digits of a small decay.
  PO_HD static float decayed(float w, float lr, float weight_decay) { return w - (lr * weight_decay) * w; }
};

// v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + eps). The applied direction is kept, as the
// gradient is not.
struct RmsProp {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"square_avg", "applied_direction"};
  float alpha = 0.99f;
  float one_minus_alpha = 0.01f;
  float eps = 1e-8f;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gradient = g + now.weight_decay * w;
    slots[0] = alpha * slots[0] + one_minus_alpha * (gradient * gradient);
    slots[1] = gradient / (sqrtf(slots[0]) + eps);
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[1]; }
  PO_HD float coast(float w, const float*, const CoastPlan&, float) const { return w; }
};

}  // namespace pipeoptim
