// The costs of stages and links, measured: read from the Chrome trace of a training run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pipeline/simulation.h"

namespace pipeoptim::app {

struct TraceCosts {  // microseconds
  std::vector<StageCosts> stages;
  std::vector<LinkCosts> links;
  std::int64_t minibatches = 0, microbatches = 0;
  bool split = false;  // whether input gradients and weight gradients were apart
  double makespan = 0;
};

// Means over the training in the trace. Throws DataError for a file that is not such a trace, or has
// evaluations between its epochs.
TraceCosts read_trace_costs(const std::string& path);

}  // namespace pipeoptim::app
