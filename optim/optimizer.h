// The optimizer of one stage: a rule, its state arena, and the three passes (update, predict, update+predict)
// over the stage's flat parameter arena. All work is stream-ordered; nothing blocks, nothing allocates after
// construction.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim {

// How far ahead a prediction can look, in steps.
inline constexpr int kMaxHorizon = 128;

enum class Predictor {
  kLinear,         // count * (the next learning rate) * direction: the paper's
  kScheduleAware,  // as kLinear, with the sum of the coming learning rates
  kGeometric,      // future gradients taken as zero: the momentum decays
  kDifference,     // distance * (the running average of the weights' steps): one more state array
  kNone            // a copy
};

// What a prediction follows for momentum SGD.
enum class MomentumDirection {
  kBuffer,       // the momentum buffer: the paper's
  kReleasedCode  // u buffer + (1 - tau) g: the authors' program's; one more state array
};

// What muon multiplies the orthogonal factor of a rows x columns matrix by.
enum class MuonScale {
  kMatchAdam,  // 0.2 sqrt(max(rows, columns)): steps as long as Adam's, so that both take one learning rate
  kOriginal    // sqrt(max(1, rows / columns))
};

// Hyper-parameters of all rules; each rule reads those it has. What is not given is the rule's own default.
struct OptimizerConfig {
  std::string rule = "adamw";           // one of optimizer_names(), or sgdm-sc
  std::optional<double> momentum = {};  // 0.9; muon 0.95
  double dampening = 0;
  std::optional<double> beta1 = {};  // 0.9; adan 0.98
  std::optional<double> beta2 = {};  // 0.999; lion 0.99, adan 0.92
  double beta3 = 0.99;               // adan's decay of the squares
  double alpha = 0.99;               // rmsprop's decay of the squared gradient
  double momentum_decay = 4e-3;      // nadam's
  std::optional<double> eps = {};    // 1e-8; adagrad 1e-10
  double weight_decay = 0;           // decoupled for adamw, adan, lion and muon, else added to the gradient
  double clip_norm = 0;              // global norm of the stage's gradient; 0: off
  double delay = 0;                  // sgdm-sc: how many steps late the gradients come
  MomentumDirection momentum_direction = MomentumDirection::kBuffer;
  MuonScale muon_scale = MuonScale::kMatchAdam;
  Predictor predictor = Predictor::kLinear;
  double step_decay = 0;  // of kDifference's running average; 0: the last step alone
};

// The same with every value that was not given at the rule's default. Throws as make_optimizer for an unknown
// rule.
OptimizerConfig with_rule_defaults(OptimizerConfig config);

// A contiguous range of the parameter arena (in elements) that belongs to one parameter group or one named
// tensor.
struct ArenaRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool decays = true;
};

// A tensor's extent in the arena: its name for messages of the non-finite guard, its shape for rules that
// work on matrices.
struct NamedRange {
  std::string name;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t rows = 0;  // of a matrix of (end - begin) / rows columns, row by row; 0: not a matrix
};

// Learning rates of the next steps: lr(step) for step = completed steps, +1, ...
using LearningRates = std::span<const float>;

// How far a prediction looks. Learning rates say it for every predictor: one step each.
// Predictor::kDifference needs no rates, and may look back: at a distance of -s it gives the weights as they
// were some s steps ago.
struct Lookahead {
  LearningRates rates = {};
  int distance = 0;

  Lookahead() = default;
  template <std::convertible_to<LearningRates> Rates>
  Lookahead(const Rates& coming) : rates(coming), distance(static_cast<int>(rates.size())) {}

  static Lookahead by_steps(int signed_distance) {
    Lookahead ahead;
    ahead.distance = signed_distance;
    return ahead;
  }
};

// Where a prediction is written: the arena's first OptimizerArena::rounded_elements to `rounded`, each
// rounded to nearest, and those that follow to `values`, from its start on. Without rounded elements
// `rounded` is null, and all go to `values`.
struct PredictedWeights {
  float* values = nullptr;
  Bf16* rounded = nullptr;

  PredictedWeights() = default;
  PredictedWeights(float* all) : values(all) {}
  PredictedWeights(float* behind_rounded, Bf16* first) : values(behind_rounded), rounded(first) {}
};

// What one call needs of the learning rates; made by make_step_rates().
struct StepRates {
  float lr = 0;            // of the update
  float travel = 0;        // what a prediction multiplies the direction, or the average step, by
  std::int32_t steps = 0;  // of the prediction; the rates of each:
  float coming[kMaxHorizon] = {};
};

// Throws std::invalid_argument as Optimizer::predict.
StepRates make_step_rates(Predictor predictor, float lr, const Lookahead& ahead);

// An update, a prediction, or both, whose learning rates lie in memory. Enqueued once, into a graph, it can
// be repeated with others.
struct RepeatedStep {
  float* weights = nullptr;
  const float* gradients = nullptr;                // null: no update
  std::optional<PredictedWeights> predicted = {};  // none: no prediction
  int distance = 0;                                // of the prediction, at every repetition
  const StepRates* rates = nullptr;                // in the device's memory, read in stream order
};

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

  // predicted <- weights advanced by `ahead.distance` steps as the predictor says; rates[i] is the learning
  // rate of the i-th of these steps (the linear predictor multiplies rates[0] by the count, as the paper
  // does). With no completed step: a copy. Throws std::invalid_argument for a distance without its rates
  // where the predictor needs them, and beyond kMaxHorizon. All is computed in fp32: an element that is
  // rounded is the one that would have been written otherwise, rounded.
  virtual void predict(Stream& stream, const float* weights, PredictedWeights predicted, Lookahead ahead) = 0;

  // Both in one pass; bit for bit what update() then predict() give.
  virtual void update_predict(Stream& stream, float* weights, const float* gradients, float lr,
                              PredictedWeights predicted, Lookahead ahead) = 0;

  // Bit for bit what the calls above give that were passed the numbers themselves.
  virtual void repeat(Stream& stream, const RepeatedStep& step) = 0;

  // Slot arrays (names as in PyTorch: "momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg"; last, where
  // the predictor keeps it, "step_average"), in the device's memory.
  virtual std::vector<std::pair<std::string, float*>> state() = 0;

  // Copies the status to host memory in stream order; `to` must stay alive (pinned for CUDA).
  virtual void copy_status(Stream& stream, OptimizerStatus* to) = 0;

  // Continues from a checkpoint: with state() and the status restored, the next steps are bit for bit those
  // of an uninterrupted run.
  virtual void restore_status(Stream& stream, const OptimizerStatus& from) = 0;
};

// Elements whose bf16 copy is as long as two of the accesses of 16 bytes that CUDA makes.
inline constexpr std::int64_t kRoundedMultiple = 16;

struct OptimizerArena {
  std::int64_t elements = 0;            // of the arena, padding included
  std::vector<ArenaRange> groups = {};  // cover the arena in order; none: one that decays
  std::vector<NamedRange> names = {};   // tensors
  // The first ones, whose predicted copy is bf16: a multiple of kRoundedMultiple, or all.
  std::int64_t rounded_elements = 0;
};

// c <- alpha op(a) op(b) + beta c in the order of a stream; all row by row without gaps, op(a) is rows x
// inner, op(b) inner x columns. Where beta is 0, c is only written.
struct MatrixProduct {
  enum class Flip { kNeither, kA, kB };  // which factor is stored transposed
  Flip flip = Flip::kNeither;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t inner = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  float* c = nullptr;
  float alpha = 1;
  float beta = 0;
};

// Who makes an optimizer for matrices brings the product: this folder knows no vendor's library.
using MultiplyMatrices = void (*)(Stream& stream, const MatrixProduct& product);

// Throws std::invalid_argument for an unknown rule (nearest name), an impossible hyper-parameter (names it),
// and for matrices that muon has no `multiply` for.
std::unique_ptr<Optimizer> make_optimizer(Device device, const OptimizerConfig& config, OptimizerArena arena,
                                          MultiplyMatrices multiply = nullptr);

// State arrays that rule and predictor keep, each as long as the arena. Throws as make_optimizer for an
// unknown rule.
int optimizer_slots(const OptimizerConfig& config);

// Beside these: what a rule needs while it steps.
std::size_t optimizer_workspace_bytes(const OptimizerConfig& config, const OptimizerArena& arena);

// The rules that a user may choose. sgdm-sc is not among them: its delay is a stage's, which a method sets.
const std::vector<std::string>& optimizer_names();

}  // namespace pipeoptim
