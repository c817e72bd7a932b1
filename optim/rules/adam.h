// Adam and its relatives: running averages of the gradient and of its square.
#pragma once

#include "optim/rule.h"

namespace pipeoptim {

// The moments that Adam, AdamW and NAdam share.
struct AdamMoments {
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float one_minus_beta1 = 0.1f;
  float one_minus_beta2 = 0.001f;
  float eps = 1e-8f;

  PO_HD void accumulate(float g, float* slots) const {
    slots[0] = beta1 * slots[0] + one_minus_beta1 * g;
    slots[1] = beta2 * slots[1] + one_minus_beta2 * (g * g);
  }
  PO_HD float denominator(const float* slots, float correction2) const {
    return sqrtf(slots[1]) * correction2 + eps;
  }
};

struct AdamDirection : AdamMoments {
  static constexpr int kSlots = 2;
  static constexpr const char* kSlotNames[kSlots] = {"exp_avg", "exp_avg_sq"};

  // mhat / (sqrt(vhat) + eps)
  PO_HD float direction(const float* slots, const StepScalars& at) const {
    return (slots[0] * at.correction1) / denominator(slots, at.correction2);
  }
  // Step i of a coasting weight: m decays to beta1^i m, v stays, the corrections are those of step t+i.
  PO_HD float coasting_direction(const float* slots, const CoastStep& at) const {
    return (at.momentum * slots[0] * at.correction1) / denominator(slots, at.correction2);
  }
};

// Weight decay is added to the gradient.
struct Adam : AdamDirection {
  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    accumulate(g + now.weight_decay * w, slots);
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float) const {
    return w - step.lr * coasting_direction(slots, step);
  }
};

// Weight decay is apart from the gradient: w <- w - lr decay w, then Adam's step.
struct AdamW : AdamDirection {
  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    accumulate(g, slots);
    return decayed(w, now.lr, now.weight_decay) - now.lr * direction(slots, now.scalars);
  }
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float weight_decay) const {
    return decayed(w, step.lr, weight_decay) - step.lr * coasting_direction(slots, step);
  }
};

// Adam with Nesterov's momentum, whose mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2) rises to beta1. Weight
// decay is added to the gradient. The applied direction is kept, as the gradient is not.
struct NAdam : AdamMoments {
  static constexpr int kSlots = 3;
  static constexpr const char* kSlotNames[kSlots] = {"exp_avg", "exp_avg_sq", "applied_direction"};

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float gradient = g + now.weight_decay * w;
    accumulate(gradient, slots);
    slots[2] = (now.scalars.gradient_gain * gradient + now.scalars.momentum_gain * slots[0]) /
               denominator(slots, now.scalars.correction2);
    return w - now.lr * direction(slots, now.scalars);
  }
  PO_HD float direction(const float* slots, const StepScalars&) const { return slots[2]; }
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float) const {
    return w - step.lr *
                   ((step.momentum_gain * (step.momentum * slots[0])) / denominator(slots, step.correction2));
  }
};

// Adan (Xie et al., arXiv 2208.06677) with the bias corrections and the numbering of the authors' program:
// m, v and n average the gradient, its difference to the one before (0 in the first step), and the square of
// g + beta2 difference; w <- (w - lr (mhat + beta2 vhat) / (sqrt(nhat) + eps)) / (1 + lr decay).
struct Adan {
  static constexpr int kSlots = 4;
  static constexpr const char* kSlotNames[kSlots] = {"previous_gradient", "exp_avg", "exp_avg_diff",
                                                     "exp_avg_sq"};
  float beta1 = 0.98f;
  float beta2 = 0.92f;
  float beta3 = 0.99f;
  float one_minus_beta1 = 0.02f;
  float one_minus_beta2 = 0.08f;
  float one_minus_beta3 = 0.01f;
  float eps = 1e-8f;

  PO_HD float advance(float w, float g, float* slots, const StepNow& now) const {
    const float difference = now.scalars.steps == 1 ? 0.0f : g - slots[0];
    const float ahead = g + beta2 * difference;
    slots[0] = g;
    slots[1] = beta1 * slots[1] + one_minus_beta1 * g;
    slots[2] = beta2 * slots[2] + one_minus_beta2 * difference;
    slots[3] = beta3 * slots[3] + one_minus_beta3 * (ahead * ahead);
    return shrunk(w - now.lr * direction(slots, now.scalars), now.lr, now.weight_decay);
  }
  PO_HD float direction(const float* slots, const StepScalars& at) const {
    return (slots[1] * at.correction1 + beta2 * (slots[2] * at.correction3)) /
           (sqrtf(slots[3]) * at.correction2 + eps);
  }
  // The first coming gradient of zero differs from the last one by -g, the others do not differ; n stays.
  PO_HD float coast_step(float w, const float* slots, const CoastStep& step, float weight_decay) const {
    const float differences = step.momentum3 * (beta2 * slots[2] - one_minus_beta2 * slots[0]);
    const float ahead =
        (step.momentum * slots[1] * step.correction1 + beta2 * (differences * step.correction3)) /
        (sqrtf(slots[3]) * step.correction2 + eps);
    return shrunk(w - step.lr * ahead, step.lr, weight_decay);
  }
  // The source's proximal form of decoupled decay, w / (1 + lr decay), with all digits of a small decay.
  PO_HD static float shrunk(float w, float lr, float weight_decay) {
    const float decay = lr * weight_decay;
    return w - (decay / (1.0f + decay)) * w;
  }
};

}  // namespace pipeoptim
