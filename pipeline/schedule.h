// A schedule is data: for every stage one vector of instructions, in the order in which the stage's host
// issues them. A stage is a part of the model; a worker (device, rank, group of cores) holds one stage, or
// several (its chunks), whose compute it runs one at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pipeoptim {

enum class Op : std::uint8_t {
  kForward,          // F: forward of one micro-batch
  kBackward,         // B: input gradient and weight gradient
  kBackwardInput,    // input gradient only (split backward)
  kBackwardWeights,  // weight gradient only (split backward)
  kUpdate,           // U: one optimizer step of the stage
  kPredict,          // writes the predicted copy from the live weights
  kUpdatePredict,    // U and kPredict in one pass
  kStashWeights,     // copies the live weights to a version slot
  kSendActivation,
  kReceiveActivation,
  kSendGradient,
  kReceiveGradient
};

// Forwards and backwards: what reads weights and takes a time unit.
constexpr bool is_compute(Op op) {
  return op == Op::kForward || op == Op::kBackward || op == Op::kBackwardInput || op == Op::kBackwardWeights;
}

constexpr bool makes_input_gradient(Op op) { return op == Op::kBackward || op == Op::kBackwardInput; }

constexpr bool is_update(Op op) { return op == Op::kUpdate || op == Op::kUpdatePredict; }

// Which weights a forward or backward multiplies by.
enum class WeightSource : std::uint8_t { kLive, kPredicted, kVersion };

struct Instruction {
  Op op = Op::kForward;
  std::int32_t microbatch = 0;  // counted from the flush; for updates: of the last backward before it
  std::int32_t minibatch = 0;   // microbatch / micro-batches per update
  std::int32_t slot = -1;       // activation slot of the micro-batch on this stage
  WeightSource source = WeightSource::kLive;
  std::int32_t version = 0;  // F, B: base version it reads; U: version it makes (counted from the flush)
  std::int32_t horizon = 0;  // F, B, predict: steps of prediction; below 0: back to the forward's weights
  std::int32_t version_slot = -1;    // kStashWeights and WeightSource::kVersion
  std::int32_t predicted_slot = -1;  // kPredict, kUpdatePredict and WeightSource::kPredicted

  friend bool operator==(const Instruction&, const Instruction&) = default;
};

using Program = std::vector<Instruction>;

// Whether its backwards come in two parts.
bool splits_backward(const Program& program);

struct Schedule {
  std::vector<Program> stages;
  std::int32_t microbatches = 0;  // between two flushes
  std::int32_t microbatches_per_update = 1;
  std::vector<std::int32_t> slots;            // per stage: activation slots needed
  std::vector<std::int32_t> version_slots;    // per stage: extra full weight copies for kVersion
  std::vector<std::int32_t> predicted_slots;  // per stage: predicted weight copies
  std::vector<std::int32_t> gaps;             // per stage: most updates between a forward and its backward
  // Only where a worker holds several stages: the worker of each stage, and for each worker the stages whose
  // next forward or backward it runs, in order.
  std::vector<std::int32_t> workers;
  std::vector<std::vector<std::int32_t>> turns;

  int depth() const { return static_cast<int>(stages.size()); }
  int worker_of(int stage) const {
    return workers.empty() ? stage : static_cast<int>(workers[static_cast<std::size_t>(stage)]);
  }
  int worker_count() const { return turns.empty() ? depth() : static_cast<int>(turns.size()); }
};

enum class HorizonPolicy { kExact, kPaper, kReleasedCode };

// What one micro-batch costs a stage, in any unit; where stages differ, their mean.
struct ComputeCosts {
  double forward = 1, backward_input = 1, backward_weights = 1;
};

// What a method is asked to make a schedule for.
struct ScheduleRequest {
  int workers = 1;
  int minibatches = 1;  // mini-batches (updates) between two flushes
  int microbatches_per_update = 1;
  HorizonPolicy horizon = HorizonPolicy::kExact;
  int chunks = 0;  // stages that each worker holds; 0: as the method has it by default
  int delay = 0;   // "delayed": updates between a forward and its backward
  // "zb-auto" only: what it places weight gradients by, and the micro-batches that a worker may have in
  // flight (0: as many as "zb-h2" has).
  ComputeCosts costs = {};
  int activation_limit = 0;
};

// Makes the complete, validated schedule of a method (pipeline/methods.h). Throws std::invalid_argument for
// impossible numbers (saying which).
Schedule make_schedule(const std::string& method, const ScheduleRequest& request);

// Forward only (evaluation): each stage F of every micro-batch with its transfers, live weights.
Schedule make_forward_schedule(int stages, int microbatches);

// Proves that the schedule runs to its end when every edge buffers at most `channel_capacity` tensors, that
// every dependency holds, that weight versions are what the instructions claim and that slots do not overlap.
// Throws std::logic_error naming stage, instruction and what it waits for.
void validate(const Schedule& schedule, int channel_capacity = 1);

// Whether the programs come to their end at that capacity; looks at nothing else.
bool runs_to_its_end(const Schedule& schedule, int channel_capacity);

// One order of all instructions as (stage, index) in which each comes after what it depends on; breadth
// first.
struct IssueStep {
  std::int32_t stage;
  std::int32_t index;
};
std::vector<IssueStep> issue_order(const Schedule& schedule);

// Unit-time picture: one line a worker, one column a time unit ("F0", "B0"; updates merged into B; of a
// worker's second stage "F0b", and so on).
std::string draw(const Schedule& schedule, int max_columns = 110);

// "F", "B", "BI", "BW", "U", "P", "UP", ...
const char* short_name(Op op);
std::string to_string(const Instruction& instruction);

}  // namespace pipeoptim
