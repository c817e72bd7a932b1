// The program's JSON: lines of --log and --version-trace, the Chrome trace, the plan.
#pragma once

#include <string>
#include <vector>

#include "pipeline/engine.h"
#include "pipeline/trainer.h"

namespace pipeoptim::app {

std::string step_line(const StepResult& step);
std::string epoch_line(const EpochResult& epoch);
// Names the micro-batch only where mini-batches have several.
std::string version_line(const VersionRecord& record, int micro_batches);

// Complete events, one process a stage, one thread a stream.
std::string chrome_trace(const std::vector<TraceSpan>& spans, int stages);

std::string plan_json(const std::vector<StageInfo>& stages);

}  // namespace pipeoptim::app
