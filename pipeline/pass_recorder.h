// What one pass leaves behind beside the trained weights: versions, busy times and trace spans, written down
// by the streams' workers as they execute. Private to pipeline.
#pragma once

#include <cstdint>

#include "pipeline/engine_core.h"

namespace pipeoptim {

class PassRecorder {
 public:
  PassRecorder(EngineCore& core, const Schedule& schedule, const TrainPass& pass);

  // Micro-batch counted from the start of training.
  std::int64_t global_microbatch(const Instruction& instruction) const;

  // Stream-ordered, around the work of one instruction.
  void begin_span(int stage, StreamId stream);
  void end_span(int stage, StreamId stream, const Instruction& instruction);
  // `op` is 'F', 'B' or 'U'; nothing unless the pass asks for versions.
  void note_version(int stage, const Instruction& instruction, char op);

  // When all streams are idle: reports the versions, keeps the trace and, of training, the timing.
  void finish(Mode mode);

 private:
  StageLane& lane(int stage) { return *core_.lanes[static_cast<std::size_t>(stage)]; }
  void keep_trace(int stage);

  EngineCore& core_;
  const TrainPass& pass_;
  std::int64_t first_microbatch_;
};

}  // namespace pipeoptim
