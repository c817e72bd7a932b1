// What a rule is: one struct per optimizer, per element, in registers. A rule is written once; step.h makes
// the update, the prediction and both in one pass out of it. Those of the library are in rules/. A user's
// rule has the same members:
//
//   kSlots, kSlotNames               state arrays and what checkpoints call them
//   advance(w, g, slots, now)        the new weight; leaves the new state in `slots`
//   direction(slots, now)            what the linear predictors multiply by the learning rate; a function of
//                                    the state alone, so that a prediction needs no gradient
//   coast(w, slots, ahead, decay)    the weight after `ahead.steps` more steps with zero gradients;
//     or coast_step(w, slots, step, decay)  the weight after the one coming step that `step` describes
//
// Everything is fp32 in a fixed order of operations (no contraction, no fast maths): the same bits in every
// pass and on every backend.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/runtime/macros.h"
#include "optim/optimizer.h"

namespace pipeoptim {

// Decays of the rule's running averages, for the scalars below; 0 where a rule has no such average.
struct StepDecays {
  double beta1 = 0;            // first moment
  double beta2 = 0;            // second moment
  double beta3 = 0;            // a second average of the first order: adan's gradient differences
  double momentum_warmup = 1;  // nadam's 0.96^momentum_decay, by which its momentum nears beta1
};

// What changes from step to step but not from element to element. `steps` counts completed steps; in
// advance() it includes the running one.
struct StepScalars {
  std::int64_t steps = 0;
  float correction1 = 1;    // 1 / (1 - beta1^steps)
  float correction2 = 1;    // 1 / sqrt(1 - beta2^steps)
  float correction3 = 1;    // 1 / (1 - beta3^steps)
  float gradient_gain = 1;  // nadam: (1 - mu_t) / (1 - mu_1 .. mu_t)
  float momentum_gain = 0;  // nadam: mu_(t+1) / (1 - mu_1 .. mu_(t+1))
};

struct StepNow {
  StepScalars scalars;
  float lr = 0;
  float weight_decay = 0;  // of the element's group
};

// The coming steps i = 1..steps of a prediction with zero gradients, after t completed ones.
struct CoastStep {
  float lr = 0;
  float momentum = 1;       // beta1^i
  float correction1 = 1;    // 1 / (1 - beta1^(t+i))
  float correction2 = 1;    // 1 / sqrt(1 - beta2^(t+i))
  float correction3 = 1;    // 1 / (1 - beta3^(t+i))
  float momentum3 = 1;      // beta3^(i-1)
  float momentum_gain = 0;  // nadam's, of step t+i
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

// Decay apart from the gradient. Not w * (1 - lr decay): that factor loses half of the digits of a small
// decay.
PO_HD float decayed(float w, float lr, float weight_decay) { return w - (lr * weight_decay) * w; }

}  // namespace pipeoptim
