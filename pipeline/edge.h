// How a tensor gets from a stage to its neighbour: by a copy where both are in this process, over a link
// where the other one is not. Private to pipeline.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "pipeline/engine_core.h"
#include "pipeline/lane.h"
#include "pipeline/pass_recorder.h"
#include "pipeline/processes/peer_links.h"

namespace pipeoptim {

enum class Payload { kActivation, kGradient };

// One directed edge: activations go to the next stage, gradients to the previous one.
class Edge {
 public:
  virtual ~Edge() = default;
  virtual void begin_pass(std::int32_t microbatches) = 0;
  // An instruction of the stage where the edge begins, and of the one where it ends. Stream-ordered: a send
  // waits for the work that fills its slot, a receive for what last used the slot; what follows on either
  // side waits by the lane's events.
  virtual void send(const Instruction& instruction) = 0;
  virtual void receive(const Instruction& instruction, PassRecorder& recorder) = 0;
  virtual void synchronize() {}
  virtual void throw_if_failed() {}
};

// Null where neither end is in this process.
std::unique_ptr<Edge> make_edge(EngineCore& core, Payload payload, int from, int to);

}  // namespace pipeoptim
