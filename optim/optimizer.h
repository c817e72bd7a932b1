// The optimizer of one stage: a rule, its state arena, and the three passes (update, predict, update+predict)
// over the stage's flat parameter arena. All work is stream-ordered; nothing blocks, nothing allocates after
// construction.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim {

// How far ahead a prediction can look, in steps.
inline constexpr int kMaxHorizon = 128;

enum class Predictor {
  kLinear,         // count * (the next learning rate) * direction: the paper's
  kScheduleAware,  // as kLinear, with the sum of the coming learning rates
  kGeometric       // future gradients taken as zero: the momentum decays
};

// Hyper-parameters of all rules; each rule documents those it reads.
struct OptimizerConfig {
  std::string rule = "adamw";  // sgd, sgdm, nesterov, adam, adamw, rmsprop
  double momentum = 0.9;
  double dampening = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double alpha = 0.99;  // rmsprop's decay of the squared gradient
  double eps = 1e-8;
  double weight_decay = 0;  // coupled (added to the gradient) but for adamw, where it is decoupled
  double clip_norm = 0;     // global norm of the stage's gradient; 0: off
  Predictor predictor = Predictor::kLinear;
};

// A contiguous range of the parameter arena (in elements) that belongs to one parameter group or one named
// tensor.
struct ArenaRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool decays = true;
};

// Named extent of the arena, for messages of the non-finite guard.
struct NamedRange {
  std::string name;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// Learning rates of the next steps: lr(step) for step = completed steps, +1, ...
using LearningRates = std::span<const float>;

struct OptimizerStatus {
  std::int64_t steps = 0;    // completed updates
  std::int64_t skipped = 0;  // updates skipped by the non-finite guard
  std::int32_t last_bad_range =
      -1;                   // index into the named ranges of the first non-finite gradient of the last skip
  float gradient_norm = 0;  // of the last update (before clipping)
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  virtual int slots() const = 0;  // state arrays of the arena's length

  // w <- one step along the rule with learning rate `lr`. A gradient that holds a non-finite value skips the
  // step: weights and state stay bitwise as they were, and the status says so.
  virtual void update(Stream& stream, float* weights, const float* gradients, float lr) = 0;

  // predicted <- weights advanced by `rates.size()` steps along the rule's own direction; rates[i] is the
  // learning rate of the i-th of these steps (the linear predictor multiplies rates[0] by the count, as the
  // paper does). With no completed step: a copy.
  virtual void predict(Stream& stream, const float* weights, float* predicted, LearningRates rates) = 0;

  // Both in one pass; bit for bit what update() then predict() give.
  virtual void update_predict(Stream& stream, float* weights, const float* gradients, float lr,
                              float* predicted, LearningRates rates) = 0;

  // Slot arrays (names as in PyTorch: "momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg"), in the
  // device's memory.
  virtual std::vector<std::pair<std::string, float*>> state() = 0;

  // Copies the status to host memory in stream order; `to` must stay alive (pinned for CUDA).
  virtual void copy_status(Stream& stream, OptimizerStatus* to) = 0;

  // Continues from a checkpoint: with state() and the status restored, the next steps are bit for bit those
  // of an uninterrupted run.
  virtual void restore_status(Stream& stream, const OptimizerStatus& from) = 0;
};

struct OptimizerArena {
  std::int64_t elements = 0;            // of the arena, padding included
  std::vector<ArenaRange> groups = {};  // cover the arena in order; none: one that decays
  std::vector<NamedRange> names = {};   // tensors, for messages
};

// Throws std::invalid_argument for an unknown rule (nearest name) or an impossible hyper-parameter (names
// it).
std::unique_ptr<Optimizer> make_optimizer(Device device, const OptimizerConfig& config, OptimizerArena arena);

// State arrays that the rule keeps, each as long as the arena. Throws as make_optimizer for an unknown rule.
int optimizer_slots(const OptimizerConfig& config);

const std::vector<std::string>& optimizer_names();

}  // namespace pipeoptim
