// Steps scaled by past squares of the gradient, without a momentum. Weight decay is added to the gradient,
// and the applied direction is kept, as the gradient is not.
#pragma once

#include "optim/rule.h"

namespace pipeoptim {

// v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + eps)
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

// v <- v + g^2; w <- w - lr g / (sqrt(v) + eps). No decay of the learning rate: schedules do that.
struct Adagrad {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"sum", "applied_direction"};
  float eps = 1e-10f;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gradient = g + now.weight_decay * w;
    slots[0] = slots[0] + gradient * gradient;
    slots[1] = gradient / (sqrtf(slots[0]) + eps);
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[1]; }
  PO_HD float coast(float w, const float*, const CoastPlan&, float) const { return w; }
};

}  // namespace pipeoptim
