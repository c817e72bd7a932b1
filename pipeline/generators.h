// Generators emit compute only: forwards, backwards and updates of each stage, with the weights that a method
// wants. Passes (passes.h) add what follows from them.
#pragma once

#include <string>

#include "pipeline/schedule.h"

namespace pipeoptim {

// F, B and U of every stage; F and B carry source, version and horizon, U the version it makes. Checks the
// numbers.
Schedule generate_compute(const std::string& method, const ScheduleRequest& request);

}  // namespace pipeoptim
