#include <stdexcept>

#include "optim/factory.h"
#include "optim/optimizer.h"
#include "optim/step.h"

namespace pipeoptim {
namespace {

using detail::RuleKind;

float single(double value) { return static_cast<float>(value); }

AdamMoments moments(const OptimizerConfig& config) {
  return {.beta1 = single(config.beta1),
          .beta2 = single(config.beta2),
          .one_minus_beta1 = single(1 - config.beta1),
          .one_minus_beta2 = single(1 - config.beta2),
          .eps = single(config.eps)};
}

// Calls visit(rule, decays) with the rule that the configuration describes.
template <typename Visit>
auto with_rule(const OptimizerConfig& config, Visit visit) {
  const StepDecays momentum{.beta1 = config.momentum, .beta2 = 0};
  const StepDecays adam{.beta1 = config.beta1, .beta2 = config.beta2};
  switch (detail::rule_kind(config.rule)) {
    case RuleKind::kSgd:
      return visit(Sgd{}, StepDecays{});
    case RuleKind::kSgdMomentum:
      return visit(SgdMomentum{.momentum = single(config.momentum),
                               .one_minus_dampening = single(1 - config.dampening)},
                   momentum);
    case RuleKind::kNesterov:
      return visit(Nesterov{.momentum = single(config.momentum)}, momentum);
    case RuleKind::kAdam:
      return visit(Adam{moments(config)}, adam);
    case RuleKind::kAdamW:
      return visit(AdamW{moments(config)}, adam);
    case RuleKind::kRmsProp:
      return visit(RmsProp{.alpha = single(config.alpha),
                           .one_minus_alpha = single(1 - config.alpha),
                           .eps = single(config.eps)},
                   StepDecays{});
  }
  throw std::logic_error("a rule without an instantiation");
}

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(Device device, const OptimizerConfig& config,
                                          OptimizerArena arena) {
  detail::validate(config);
  return with_rule(config, [&](const auto& rule, StepDecays decays) -> std::unique_ptr<Optimizer> {
    using Rule = std::decay_t<decltype(rule)>;
    return std::make_unique<RuleOptimizer<Rule>>(device, rule, decays, config, std::move(arena));
  });
}

int optimizer_slots(const OptimizerConfig& config) {
  return with_rule(config, [](const auto& rule, StepDecays) { return std::decay_t<decltype(rule)>::kSlots; });
}

}  // namespace pipeoptim
