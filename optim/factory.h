// Shared by the two halves of the factory: names and checks (C++), and the instantiations (kernel file).
#pragma once

#include <string>

#include "optim/optimizer.h"
#include "optim/rules/adam.h"

namespace pipeoptim::detail {

// In the order of optimizer_names(), then what is not among them.
enum class RuleKind {
  kSgd,
  kSgdMomentum,
  kNesterov,
  kAdam,
  kAdamW,
  kRmsProp,
  kAdagrad,
  kNAdam,
  kAdan,
  kLion,
  kMuon,
  kSpikeCompensation
};

// Throws std::invalid_argument with the nearest name.
RuleKind rule_kind(const std::string& name);

// Checks what the rule reads of a configuration with its defaults filled in; throws std::invalid_argument
// that names the hyper-parameter.
void validate(const OptimizerConfig& config);

AdamMoments adam_moments(const OptimizerConfig& config);  // as validate()

}  // namespace pipeoptim::detail
