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

}  // namespace

const std::vector<std::string>& optimizer_names() {
  static const std::vector<std::string> names = {"sgd", "sgdm", "nesterov", "adam", "adamw", "rmsprop"};
  return names;
}

namespace detail {

RuleKind rule_kind(const std::string& name) {
  const std::vector<std::string>& names = optimizer_names();
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<RuleKind>(i);
  }
  throw std::invalid_argument(unknown_name("optimizer rule", name, names));
}

void validate(const OptimizerConfig& config) {
  const RuleKind kind = rule_kind(config.rule);
  require_not_negative("weight_decay", config.weight_decay);
  require_not_negative("clip_norm", config.clip_norm);
  switch (kind) {
    case RuleKind::kSgd:
      return;
    case RuleKind::kSgdMomentum:
      require_decay("momentum", config.momentum);
      return require(config.dampening >= 0 && config.dampening <= 1, "dampening", config.dampening,
                     "in [0, 1]");
    case RuleKind::kNesterov:
      require_decay("momentum", config.momentum);
      return require(config.dampening == 0, "dampening", config.dampening,
                     "0, which Nesterov's momentum needs");
    case RuleKind::kAdam:
    case RuleKind::kAdamW:
      require_decay("beta1", config.beta1);
      require_decay("beta2", config.beta2);
      return require_eps(config.eps);
    case RuleKind::kRmsProp:
      require_decay("alpha", config.alpha);
      return require_eps(config.eps);
  }
}

}  // namespace detail

}  // namespace pipeoptim
