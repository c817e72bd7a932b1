// Stochastic gradient descent and its momenta. Weight decay is added to the gradient.
#pragma once

#include "optim/rule.h"

namespace pipeoptim {

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

// Steps of SgdMomentum, predicted as in the program that PipeOptim's authors released: along u m + (1 - tau)
// g with the m of after the step. The gradient is not kept, so this direction is.
struct ReleasedSgdMomentum {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"momentum_buffer", "predicted_direction"};
  SgdMomentum steps;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gradient = g + now.weight_decay * w;
    const float stepped = steps.advance(w, g, slots, now);
    slots[1] = steps.momentum * slots[0] + steps.one_minus_dampening * gradient;
    return stepped;
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[1]; }
  PO_HD float coast(float w, const float* slots, const CoastPlan& ahead, float weight_decay) const {
    return steps.coast(w, slots, ahead, weight_decay);
  }
};

// Spike compensation (Kosson et al., arXiv 2003.11666) for gradients that come d steps late: v <- u v + g;
// w <- w - lr (a v + b g), a = u^d, b = (1 - u^d) / (1 - u). What a gradient on time would have contributed
// in the d steps that it missed is made up for at once. Predictions follow the velocity v, as the source's
// linear weight prediction does.
struct SpikeCompensation {
  static constexpr int kSlots = 1;
  static constexpr const char* kSlotNames[kSlots] = {"momentum_buffer"};
  float momentum = 0.9f;
  float velocity_gain = 1;  // a
  float gradient_gain = 0;  // b

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gradient = g + now.weight_decay * w;
    slots[0] = momentum * slots[0] + gradient;
    return w - now.lr * (velocity_gain * slots[0] + gradient_gain * gradient);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[0]; }
  PO_HD float coast(float w, const float* slots, const CoastPlan& ahead, float) const {
    return w - ahead.momentum_travel * (velocity_gain * slots[0]);
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

}  // namespace pipeoptim
