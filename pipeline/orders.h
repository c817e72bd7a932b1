// The orders in which workers run forwards and backwards, without weights: what a method's generator starts
// from.
#pragma once

#include <cstdint>
#include <vector>

#include "pipeline/methods.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

// One forward or backward of one micro-batch on one stage.
struct Turn {
  Op op;
  std::int32_t stage;
  std::int32_t microbatch;
};
using Turns = std::vector<std::vector<Turn>>;  // by worker

struct OrderRequest {
  ComputeOrder order = ComputeOrder::kSequential;
  std::int32_t workers = 1;
  std::int32_t chunks = 1;
  std::int32_t count = 1;   // micro-batches, from 0 on, that start and end with an empty pipeline
  std::int32_t delay = 0;   // kDelayed: micro-batches between a forward and its backward
  ComputeCosts costs = {};  // kZeroBubbleAuto
  std::int32_t activation_limit = 0;
};

// Chunk c of worker d is stage c * workers + d; for kZeroBubbleV the second chunks come in reverse order.
std::int32_t stage_of(ComputeOrder order, std::int32_t workers, std::int32_t worker, std::int32_t chunk);

Turns make_turns(const OrderRequest& request);

// Makes the turns of kZeroBubbleAuto: the best, by idle time, of several placements that keep to the limit.
Turns place_weight_gradients(const OrderRequest& request);

// The zero-bubble order in closed form: stage k starts with `depth_factor * (D-1-k)` forwards and runs each
// weight gradient `depth_factor * k` micro-batches behind its input gradient. Factor 1 is ZB-H1, 2 ZB-H2 (Qi
// et al., arXiv 2401.10241).
Turns zero_bubble_turns(std::int32_t workers, std::int32_t count, std::int32_t depth_factor);

}  // namespace pipeoptim
