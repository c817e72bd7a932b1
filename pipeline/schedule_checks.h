// The part of validate() that looks at one stage alone.
#pragma once

#include "pipeline/schedule.h"

namespace pipeoptim {

// Runs the bookkeeping of one stage's program: transfers, weight versions, predictions, slots, updates.
// Throws std::logic_error at the first instruction that does not hold.
void check_stage(const Schedule& schedule, int stage);

}  // namespace pipeoptim
