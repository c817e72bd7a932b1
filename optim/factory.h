// Shared by the two halves of the factory: names and checks (C++), and the instantiations (kernel file).
#pragma once

#include <string>

#include "optim/optimizer.h"

namespace pipeoptim::detail {

// In the order of optimizer_names().
enum class RuleKind { kSgd, kSgdMomentum, kNesterov, kAdam, kAdamW, kRmsProp };

// Throws std::invalid_argument with the nearest name.
RuleKind rule_kind(const std::string& name);

// Checks what the rule reads; throws std::invalid_argument that names the hyper-parameter.
void validate(const OptimizerConfig& config);

}  // namespace pipeoptim::detail
