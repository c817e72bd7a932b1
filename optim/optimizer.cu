#include <cmath>
#include <stdexcept>

#include "optim/factory.h"
#include "optim/muon.h"
#include "optim/optimizer.h"
#include "optim/rules/all.h"
#include "optim/step.h"

namespace pipeoptim {
namespace {

using detail::RuleKind;

float single(double value) { return static_cast<float>(value); }

SgdMomentum sgd_momentum(const OptimizerConfig& config) {
  return {.momentum = single(*config.momentum), .one_minus_dampening = single(1 - config.dampening)};
}

SpikeCompensation spike_compensation(const OptimizerConfig& config) {
  const double momentum = *config.momentum, kept = std::pow(momentum, config.delay);
  return {.momentum = single(momentum),
          .velocity_gain = single(kept),
          .gradient_gain = single((1 - kept) / (1 - momentum))};
}

Adan adan(const OptimizerConfig& config) {
  return {.beta1 = single(*config.beta1),
          .beta2 = single(*config.beta2),
          .beta3 = single(config.beta3),
          .one_minus_beta1 = single(1 - *config.beta1),
          .one_minus_beta2 = single(1 - *config.beta2),
          .one_minus_beta3 = single(1 - config.beta3),
          .eps = single(*config.eps)};
}

Lion lion(const OptimizerConfig& config) {
  return {.beta1 = single(*config.beta1),
          .beta2 = single(*config.beta2),
          .one_minus_beta1 = single(1 - *config.beta1),
          .one_minus_beta2 = single(1 - *config.beta2)};
}

RmsProp rms_prop(const OptimizerConfig& config) {
  return {
      .alpha = single(config.alpha), .one_minus_alpha = single(1 - config.alpha), .eps = single(*config.eps)};
}

// Calls visit(rule, decays) with the element rule that the configuration, its defaults filled in, describes.
template <typename Visit>
auto with_rule(const OptimizerConfig& config, Visit visit) {
  const StepDecays momentum{.beta1 = *config.momentum};
  const StepDecays adam{.beta1 = *config.beta1, .beta2 = *config.beta2};
  switch (detail::rule_kind(config.rule)) {
    case RuleKind::kSgd:
      return visit(Sgd{}, StepDecays{});
    case RuleKind::kSgdMomentum:
      if (config.momentum_direction == MomentumDirection::kReleasedCode) {
        return visit(ReleasedSgdMomentum{sgd_momentum(config)}, momentum);
      }
      return visit(sgd_momentum(config), momentum);
    case RuleKind::kSpikeCompensation:
      return visit(spike_compensation(config), momentum);
    case RuleKind::kNesterov:
      return visit(Nesterov{.momentum = single(*config.momentum)}, momentum);
    case RuleKind::kAdam:
      return visit(Adam{{detail::adam_moments(config)}}, adam);
    case RuleKind::kAdamW:
      return visit(AdamW{{detail::adam_moments(config)}}, adam);
    case RuleKind::kNAdam:
      return visit(NAdam{detail::adam_moments(config)},
                   StepDecays{.beta1 = *config.beta1,
                              .beta2 = *config.beta2,
                              .momentum_warmup = std::pow(0.96, config.momentum_decay)});
    case RuleKind::kAdan:
      return visit(adan(config),
                   StepDecays{.beta1 = *config.beta1, .beta2 = config.beta3, .beta3 = *config.beta2});
    case RuleKind::kRmsProp:
      return visit(rms_prop(config), StepDecays{});
    case RuleKind::kAdagrad:
      return visit(Adagrad{.eps = single(*config.eps)}, StepDecays{});
    case RuleKind::kLion:
      return visit(lion(config), StepDecays{});
    case RuleKind::kMuon:
      return visit(MuonMatrix{}, adam);
  }
  throw std::logic_error("a rule without an instantiation");
}

}  // namespace

std::unique_ptr<Optimizer> make_optimizer(Device device, const OptimizerConfig& given, OptimizerArena arena,
                                          MultiplyMatrices multiply) {
  const OptimizerConfig config = with_rule_defaults(given);
  detail::validate(config);
  if (detail::rule_kind(config.rule) == RuleKind::kMuon) {
    return detail::make_muon(device, config, std::move(arena), multiply);
  }
  return with_rule(config, [&](const auto& rule, StepDecays decays) -> std::unique_ptr<Optimizer> {
    using Rule = std::decay_t<decltype(rule)>;
    return std::make_unique<RuleOptimizer<Rule>>(device, rule, decays, config, std::move(arena));
  });
}

int optimizer_slots(const OptimizerConfig& config) {
  const auto slots_of = [](const auto& rule, StepDecays) { return std::decay_t<decltype(rule)>::kSlots; };
  return with_rule(with_rule_defaults(config), slots_of) +
         (config.predictor == Predictor::kDifference ? 1 : 0);
}

std::size_t optimizer_workspace_bytes(const OptimizerConfig& config, const OptimizerArena& arena) {
  return detail::rule_kind(config.rule) == RuleKind::kMuon ? detail::muon_workspace_bytes(arena) : 0;
}

}  // namespace pipeoptim
