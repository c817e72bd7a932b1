#include "pipeline/app/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <stdexcept>

#include "kernels/runtime/names.h"
#include "kernels/runtime/placement.h"
#include "layers/provider.h"
#include "models/data/dataset.h"
#include "models/zoo.h"
#include "pipeline/methods.h"
#include "pipeline/schedule.h"

namespace pipeoptim::app {
namespace {

void require_known(const char* what, const std::string& name, std::span<const std::string> known) {
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    throw std::invalid_argument(unknown_name(what, name, known));
  }
}

template <typename T>
void require(bool holds, const char* option, T value, const char* range) {
  if (holds) return;
  throw std::invalid_argument(fmt::format("{} is {}; it must be {}", option, value, range));
}

template <typename T>
void require_range(const char* option, T value, T least, T most) {
  require(value >= least && value <= most, option, value, fmt::format("{} to {}", least, most).c_str());
}

void require_factor(const char* option, double value) {
  require(value >= 0 && value < 1, option, value, "from 0 to below 1");
}

void require_factor(const char* option, const std::optional<double>& value) {
  if (value) require_factor(option, *value);
}

void require_finite(const char* option, double value) {
  require(value >= 0 && std::isfinite(value), option, value, "a finite number from 0");
}

void validate_names(const Options& options) {
  static const std::vector<std::string> devices = {"auto", "cpu", "cuda"};
  static const std::vector<std::string> bindings = {"none", "auto"};
  static const std::vector<std::string> colors = {"auto", "always", "none"};
  require_known("model", options.model, model_names());
  require_known("data set", options.data, dataset_names());
  require_known("method", options.method, method_names());
  require_known("horizon", options.horizon, horizon_names());
  require_known("predictor", options.predictor, predictor_names());
  require_known("optimizer", options.optimizer.rule, optimizer_names());
  require_known("device", options.device, devices);
  require_known("CPU binding", options.cpu_bind, bindings);
  if (options.cpu_bind == "auto" && placement_library().empty()) {
    throw std::invalid_argument("--cpu-bind auto needs hwloc, without which this program was built");
  }
  require_known("color", options.color, colors);
  require_known("matrix precision", options.matrix_precision, matrix_precision_names());
  require_known("row kernels", options.row_kernels, row_kernels_names());
  if (options.lr.kind != "auto") {
    require_known("learning-rate schedule", options.lr.kind, LrSchedule::kinds());
  }
}

void validate_optimizer(const Options& options) {
  const OptimizerConfig& optimizer = options.optimizer;
  require_finite("--lr", options.lr.base_lr);
  require_finite("--final-lr", options.lr.final_lr);
  require_finite("--lr-gamma", options.lr.gamma);
  require(options.lr.power > 0 && std::isfinite(options.lr.power), "--lr-power", options.lr.power,
          "positive");
  require(options.lr.warmup_steps >= -1, "--warmup-steps", options.lr.warmup_steps, "0 or more");
  require_factor("--momentum", optimizer.momentum);
  require_factor("--beta1", optimizer.beta1);
  require_factor("--beta2", optimizer.beta2);
  require_factor("--beta3", optimizer.beta3);
  require_factor("--alpha", optimizer.alpha);
  require_factor("--step-decay", optimizer.step_decay);
  require_finite("--momentum-decay", optimizer.momentum_decay);
  require(optimizer.dampening >= 0 && optimizer.dampening <= 1, "--dampening", optimizer.dampening,
          "from 0 to 1");
  if (optimizer.eps) require_finite("--eps", *optimizer.eps);
  require_finite("--weight-decay", optimizer.weight_decay);
  require_finite("--clip-norm", optimizer.clip_norm);
  require_factor("--label-smoothing", options.label_smoothing);
  require_factor("--dropout", options.dropout);
  if (options.lr.kind == "step") {
    require(options.lr.step_size > 0, "--lr-step-size", options.lr.step_size,
            "1 or more for --lr-schedule step");
  }
}

// More than anybody has use for. Sizes of tensors in bytes stay below 2^63.
constexpr int kMost = 100'000, kMostPasses = 1'000'000'000;
constexpr std::int64_t kMostSteps = 1'000'000'000'000, kMostRecords = 1 << 20, kMostFeatures = 1 << 16;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 31, kMostWords = 1 << 24;

void validate_sizes(const Options& options) {
  require_range("--stages", options.stages, 1, kMost);
  require(options.devices >= 0, "--devices", options.devices, "0 or more");
  require(options.rank >= Options::kNoRank, "--rank", options.rank, "0 or more");
  require(options.world_size >= 0, "--world-size", options.world_size, "1 or more");
  require(options.rendezvous_timeout >= 1, "--rendezvous-timeout", options.rendezvous_timeout,
          "1 second or more");
  require_range("--micro-batches", options.micro_batches, 1, kMost);
  require(options.chunks >= 0 && options.chunks <= 1000, "--chunks", options.chunks,
          "1 to 1000 (0: the method's default)");
  require_range("--delay", options.delay, 0, kMost);
  require(options.activation_limit >= 0, "--activation-limit", options.activation_limit, "0 or more");
  require(options.costs.size() == 3, "--costs", options.costs.size(), "three numbers long");
  for (const double cost : options.costs)
    require(cost > 0 && std::isfinite(cost), "--costs", cost, "positive numbers");
  require(options.links.size() == 2, "--link-costs", options.links.size(), "two numbers long");
  for (const double cost : options.links) require_finite("--link-costs", cost);
  require_finite("--update-cost", options.update_cost);
  require(options.mini_batches >= 1 && options.mini_batches <= 1000000000, "--mini-batches",
          options.mini_batches, "1 or more");
  require_range("--seeds", options.seeds, 1, kMost);
  require_finite("--target-loss", options.target_loss);
  require(options.pipemare_anneal >= -1, "--pipemare-anneal", options.pipemare_anneal, "0 or more");
  require_factor("--pipemare-decay", options.pipemare_decay);
  require_range("--threads", options.threads, 1, kMost);
  require_range<std::int64_t>("--batch-size", options.batch_size, 1, kMostRecords);
  require_range<std::int64_t>("--epochs", options.epochs, 1, kMostPasses);
  require(options.steps >= 0 && options.steps <= kMostSteps, "--steps", options.steps,
          "1 to 1000000000000 (0: whole epochs)");
  require(options.eval_every >= 0, "--eval-every", options.eval_every, "0 (at the end only) or more");
  require(options.limit_train >= 0, "--limit-train", options.limit_train, "0 (all) or more");
  require(options.limit_test >= 0, "--limit-test", options.limit_test, "0 (all) or more");
  require_range<std::int64_t>("--width", options.width, 1, kMostFeatures);
  require_range<std::int64_t>("--layers", options.layers, 1, kMost);
  require_range<std::int64_t>("--features", options.features, 1, kMostFeatures);
  require_range<std::int64_t>("--heads", options.heads, 1, kMostFeatures);
  require_range<std::int64_t>("--sequence-length", options.sequence_length, 1, kMostFeatures);
  if (options.batch_size * options.sequence_length > kMostTokens) {
    throw std::invalid_argument(
        fmt::format("--batch-size {} with --sequence-length {} is more than {} tokens", options.batch_size,
                    options.sequence_length, kMostTokens));
  }
  require_range<std::int64_t>("--vocabulary", options.vocabulary, 3, kMostWords);
  if (options.model == "gpt" && options.features % options.heads != 0) {
    throw std::invalid_argument("--features " + std::to_string(options.features) +
                                " cannot be divided into --heads " + std::to_string(options.heads));
  }
  for (const std::int64_t width : options.hidden)
    require_range<std::int64_t>("a width of --hidden", width, 1, kMostWords);
  const int stages = model_stages(options);
  if (!options.cuts.empty() && static_cast<int>(options.cuts.size()) != stages - 1) {
    throw std::invalid_argument("--cuts names " + std::to_string(options.cuts.size()) + " cuts, but " +
                                std::to_string(stages) + " stages need " + std::to_string(stages - 1));
  }
}

}  // namespace

void validate(const Options& options) {
  validate_names(options);
  validate_optimizer(options);
  validate_sizes(options);
  if (options.batch_size % options.micro_batches != 0) {
    throw std::invalid_argument("--batch-size " + std::to_string(options.batch_size) +
                                " cannot be divided into --micro-batches " +
                                std::to_string(options.micro_batches));
  }
}

void validate_schedule(const Options& options) {
  validate_names(options);
  validate_sizes(options);
}

void settle_optimizer(Options& options) {
  const OptimizerConfig filled =
      with_rule_defaults(stage_optimizer(find_method(options.method), options.optimizer, {}));
  options.optimizer.momentum = filled.momentum;
  options.optimizer.beta1 = filled.beta1;
  options.optimizer.beta2 = filled.beta2;
  options.optimizer.eps = filled.eps;
}

int model_stages(const Options& options) {
  return options.stages * chunks_of(find_method(options.method), options.chunks);
}

ScheduleRequest schedule_request(const Options& options) {
  return {.workers = options.stages,
          .microbatches_per_update = options.micro_batches,
          .horizon = horizon_policy(options.horizon),
          .chunks = options.chunks,
          .delay = options.delay,
          .costs = {options.costs[0], options.costs[1], options.costs[2]},
          .activation_limit = options.activation_limit};
}

std::string rule_name(const Options& options) {
  const std::string own = find_method(options.method).rule;
  return own.empty() ? options.optimizer.rule : own;
}

// Names are in the order of their enumeration.
const std::vector<std::string>& horizon_names() {
  static const std::vector<std::string> names = {"exact", "paper", "released-code"};
  return names;
}

const std::vector<std::string>& predictor_names() {
  static const std::vector<std::string> names = {"linear", "schedule-aware", "geometric", "difference",
                                                 "none"};
  return names;
}

HorizonPolicy horizon_policy(const std::string& name) {
  return value_named<HorizonPolicy>("horizon", name, horizon_names());
}

Predictor predictor(const std::string& name) {
  return value_named<Predictor>("predictor", name, predictor_names());
}

}  // namespace pipeoptim::app
