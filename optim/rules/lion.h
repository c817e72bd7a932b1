// Lion (Chen et al., arXiv 2302.06675): the sign of a momentum.
#pragma once

#include "optim/rule.h"

namespace pipeoptim {

// w <- w - lr decay w - lr sign(beta1 m + (1 - beta1) g), with the m of before the step;
// m <- beta2 m + (1 - beta2) g. The applied direction is kept: it cannot be had from m alone.
struct Lion {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"exp_avg", "applied_direction"};
  float beta1 = 0.9f;
  float beta2 = 0.99f;
  float one_minus_beta1 = 0.1f;
  float one_minus_beta2 = 0.01f;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    slots[1] = sign(beta1 * slots[0] + one_minus_beta1 * g);
    slots[0] = beta2 * slots[0] + one_minus_beta2 * g;
    return decayed(w, now.lr, now.weight_decay) - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[1]; }
  // The momentum shrinks, its sign stays.
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float weight_decay) const {
    return decayed(w, step.lr, weight_decay) - step.lr * sign(beta1 * slots[0]);
  }
  PO_HD static float sign(float x) { return static_cast<float>((x > 0) - (x < 0)); }
};

}  // namespace pipeoptim
