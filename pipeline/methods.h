// The methods: an order of compute and a policy for the weights each. Adding one is a row in this table; the
// engine interprets schedules and knows none of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "optim/optimizer.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

// In which order a worker runs forwards and backwards.
enum class ComputeOrder : std::uint8_t {
  kSequential,
  kGpipe,
  kOneForwardOneBackward,  // with a flush behind every mini-batch
  kZeroBubbleH1,
  kZeroBubbleH2,
  kZeroBubbleV,
  kZeroBubbleAuto,
  kAsynchronous,  // 1F1B without a flush between mini-batches
  kDelayed        // one worker that behaves like an early stage of a deep asynchronous pipeline
};

// Which weights the forward and the backward of a mini-batch multiply by.
enum class WeightPolicy : std::uint8_t {
  kLive,            // what is there
  kSameVersion,     // the backward reads what the forward read
  kVerticalSync,    // both read, on every stage, the version that the first stage's forward read
  kDoubleBuffered,  // both read the version one update back
  kSpecTrain,       // both predicted, each to the version that the mini-batch is expected to update
  kXPipe,           // as kSpecTrain, predicted by the mini-batch's first micro-batch for all of them
  kPipeOptim,       // the forward predicted, by the horizon policy
  kPaperHorizon,    // the forward predicted by the constant distance
  kPipeMare         // the backward led back to the forward's weights
};

// Stages that a worker may hold.
struct ChunkRange {
  int least = 1, normal = 1, most = 1;
};

struct Method {
  const char* name;
  ComputeOrder order;
  WeightPolicy weights;
  const char* summary;
  ChunkRange chunks = {};
  // Optimizer that belongs to the method; empty: the user's.
  const char* rule = "";
  double beta1 = 0;  // of that optimizer where the user gives none; 0: the rule's own default
};

const std::vector<Method>& methods();

// Throws std::invalid_argument for an unknown name, with the nearest one.
const Method& find_method(const std::string& name);

// All names, in the order of the documentation.
const std::vector<std::string>& method_names();

// Whether several mini-batches are under way at a time.
constexpr bool is_asynchronous(ComputeOrder order) {
  return order == ComputeOrder::kAsynchronous || order == ComputeOrder::kDelayed;
}

// The optimizer of one stage whose forwards lie `gap` updates before their backwards in steady state: the
// method's own rule where it has one, spike compensation by the gap (Kosson et al., arXiv 2003.11666),
// PipeMare's average weight step, which decays by `pipemare_decay`^(1/gap) an update (Yang et al.,
// arXiv 1910.05124),
// and the direction that the released code of PipeOptim's authors has for momentum SGD.
struct StageSetting {
  int gap = 0;
  HorizonPolicy horizon = HorizonPolicy::kExact;
  double pipemare_decay = 0;
};
OptimizerConfig stage_optimizer(const Method& method, const OptimizerConfig& config,
                                const StageSetting& stage);

// What the learning rate of that stage is multiplied by: 1 but for PipeMare, whose rate starts at lr/gap and
// grows to lr over `anneal_steps` (as lr / gap^p, p falling from 1 to 0).
float rate_factor(const Method& method, int gap, std::int64_t step, std::int64_t anneal_steps);

// Whether input gradients and weight gradients are instructions of their own.
constexpr bool splits_backward(ComputeOrder order) {
  return order == ComputeOrder::kZeroBubbleH1 || order == ComputeOrder::kZeroBubbleH2 ||
         order == ComputeOrder::kZeroBubbleV || order == ComputeOrder::kZeroBubbleAuto;
}

// Stages that each worker holds when `chunks` are asked for (0: the method's default). Throws
// std::invalid_argument where the method cannot.
int chunks_of(const Method& method, int chunks);

}  // namespace pipeoptim
