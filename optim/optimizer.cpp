#include "optim/optimizer.h"

#include <cmath>
#include <stdexcept>

#include "kernels/runtime/names.h"
#include "optim/factory.h"

namespace pipeoptim {
namespace {

void require(bool holds, const std::string& name, double value, const char* range) {
  if (!holds) {
    throw std::invalid_argument("optimizer: " + name + " is " + std::to_string(value) + ", not " + range);
  }
}

// A decay is below 1 in fp32 as well, where the rule uses it.
void require_decay(const std::string& name, double value) {
  require(value >= 0 && value < 1 && static_cast<float>(value) < 1, name, value, "in [0, 1)");
}

void require_not_negative(const std::string& name, double value) {
  require(value >= 0 && std::isfinite(value), name, value, "a finite number from 0");
}

// 0 would make 0/0 of the padding and of every weight whose gradient has been 0 so far.
void require_eps(double eps) {
  require(static_cast<float>(eps) > 0 && std::isfinite(eps), "eps", eps, "a positive fp32 number");
}

struct RuleDefaults {
  double momentum = 0.9;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
};

RuleDefaults defaults_of(detail::RuleKind kind) {
  switch (kind) {
    case detail::RuleKind::kAdagrad:
      return {.eps = 1e-10};
    case detail::RuleKind::kAdan:
      return {.beta1 = 0.98, .beta2 = 0.92};
    case detail::RuleKind::kLion:
      return {.beta2 = 0.99};
    case detail::RuleKind::kMuon:
      return {.momentum = 0.95};
    default:
      return {};
  }
}

void require_betas(const OptimizerConfig& config) {
  require_decay("beta1", *config.beta1);
  require_decay("beta2", *config.beta2);
}

// Of a rule whose momentum has no dampening.
void require_plain_momentum(const OptimizerConfig& config, const char* range) {
  require_decay("momentum", *config.momentum);
  require(config.dampening == 0, "dampening", config.dampening, range);
}

void require_sgd_momentum(const OptimizerConfig& config) {
  require_decay("momentum", *config.momentum);
  require(config.dampening >= 0 && config.dampening <= 1, "dampening", config.dampening, "in [0, 1]");
}

}  // namespace

const std::vector<std::string>& optimizer_names() {
  static const std::vector<std::string> names = {"sgd",     "sgdm",  "nesterov", "adam", "adamw", "rmsprop",
                                                 "adagrad", "nadam", "adan",     "lion", "muon"};
  return names;
}

OptimizerConfig with_rule_defaults(OptimizerConfig config) {
  const RuleDefaults defaults = defaults_of(detail::rule_kind(config.rule));
  config.momentum = config.momentum.value_or(defaults.momentum);
  config.beta1 = config.beta1.value_or(defaults.beta1);
  config.beta2 = config.beta2.value_or(defaults.beta2);
  config.eps = config.eps.value_or(defaults.eps);
  return config;
}

namespace detail {

RuleKind rule_kind(const std::string& name) {
  if (name == "sgdm-sc") return RuleKind::kSpikeCompensation;
  const std::vector<std::string>& names = optimizer_names();
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<RuleKind>(i);
  }
  throw std::invalid_argument(unknown_name("optimizer rule", name, names));
}

void validate(const OptimizerConfig& config) {
  require_not_negative("weight_decay", config.weight_decay);
  require_not_negative("clip_norm", config.clip_norm);
  if (config.predictor == Predictor::kDifference) require_decay("step_decay", config.step_decay);
  switch (rule_kind(config.rule)) {
    case RuleKind::kSgd:
      return;
    case RuleKind::kSgdMomentum:
      return require_sgd_momentum(config);
    case RuleKind::kNesterov:
      return require_plain_momentum(config, "0, which Nesterov's momentum needs");
    case RuleKind::kSpikeCompensation:
      require_plain_momentum(config, "0, which spike compensation needs");
      return require_not_negative("delay", config.delay);
    case RuleKind::kNAdam:
      require_not_negative("momentum_decay", config.momentum_decay);
      [[fallthrough]];
    case RuleKind::kAdam:
    case RuleKind::kAdamW:
      require_betas(config);
      return require_eps(*config.eps);
    case RuleKind::kRmsProp:
      require_decay("alpha", config.alpha);
      return require_eps(*config.eps);
    case RuleKind::kAdagrad:
      return require_eps(*config.eps);
    case RuleKind::kAdan:
      require_betas(config);
      require_decay("beta3", config.beta3);
      return require_eps(*config.eps);
    case RuleKind::kLion:
      return require_betas(config);
    case RuleKind::kMuon:
      require_decay("momentum", *config.momentum);
      require_betas(config);
      return require_eps(*config.eps);
  }
}

AdamMoments adam_moments(const OptimizerConfig& config) {
  const auto single = [](double value) { return static_cast<float>(value); };
  return {.beta1 = single(*config.beta1),
          .beta2 = single(*config.beta2),
          .one_minus_beta1 = single(1 - *config.beta1),
          .one_minus_beta2 = single(1 - *config.beta2),
          .eps = single(*config.eps)};
}

}  // namespace detail

}  // namespace pipeoptim
