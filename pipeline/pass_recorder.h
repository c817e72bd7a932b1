// What one pass leaves behind beside the trained weights: versions, busy times and trace spans. Private to
// pipeline.
#pragma once

#include <cstdint>

#include "pipeline/engine_core.h"

namespace pipeoptim {

// Of an instruction, in traces and profilers: "F", "B", "U+P", "send activation".
const char* op_name(Op op);

class PassRecorder {
 public:
  // The streams are idle.
  PassRecorder(EngineCore& core, const Schedule& schedule, const TrainPass& pass);

  // Micro-batch counted from the start of training.
  std::int64_t global_microbatch(const Instruction& instruction) const;

  // Stream-ordered, around the work of one instruction. Copies are timed only for a trace.
  void begin_span(int stage, StreamId stream, const Instruction& instruction);
  void end_span(int stage, StreamId stream);

  // Stream-ordered, behind the work: what the stage has read or made. Nothing unless the pass asks for
  // versions. `op` is 'F' or 'B'.
  void note_pass(int stage, const Instruction& instruction, char op);
  void note_weights(int stage, const Instruction& instruction);

  // When the streams are idle again: reports the versions, keeps the trace and, of training, the timing.
  void finish(Mode mode);

 private:
  StageLane& lane(int stage) { return *core_.lanes[static_cast<std::size_t>(stage)]; }
  bool times(StreamId stream) const { return stream == kCompute || core_.config.trace; }
  void start(int stage, std::size_t instructions);
  void take_span(int stage, std::size_t stream);

  EngineCore& core_;
  const TrainPass& pass_;
  std::int64_t first_microbatch_;
};

}  // namespace pipeoptim
