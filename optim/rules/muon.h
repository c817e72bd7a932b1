// The element rule of Muon's matrices. Momentum and direction are made before it, by muon.h: a direction is
// there a property of a whole matrix.
#pragma once

#include "optim/rule.h"

namespace pipeoptim {

// w <- w - lr decay w - lr d
struct MuonMatrix {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"momentum_buffer", "applied_direction"};

  PO_HD float advance(float w, float, float* slots, const StepNow& now) const {
    return decayed(w, now.lr, now.weight_decay) - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[1]; }
  // With gradients of zero the momentum shrinks as a whole, which its orthogonal factor does not see. That
  // factor is taken to be the last step's.
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float weight_decay) const {
    return decayed(w, step.lr, weight_decay) - step.lr * slots[1];
  }
};

}  // namespace pipeoptim
