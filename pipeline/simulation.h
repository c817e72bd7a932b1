// A discrete-event simulation of schedules: the time, idle time and activations that an order of compute has
// for given costs of stages and links. It runs the same data that the engine runs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pipeline/orders.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

// Of one stage; any unit of time, the same everywhere. A whole backward costs both of its parts.
struct StageCosts {
  double forward = 1, backward_input = 1, backward_weights = 1, update = 0;
};

// Of the edge between a stage and the next: one micro-batch's activation forward, its gradient back. A link
// carries one tensor at a time in each direction, beside compute.
struct LinkCosts {
  double activation = 0, gradient = 0;
};

struct SimulatedWorker {
  double begin = 0, end = 0;  // of its first and last turn
  double busy = 0;
  std::int32_t activations = 0;  // micro-batches in flight at most, over all its stages
};

struct Simulation {
  std::vector<SimulatedWorker> workers;
  double makespan = 0;
  // The longest time that a worker is in use, less what the busiest one works: what a schedule costs beyond
  // its arithmetic. This is the bubble of the closed forms: it does not count that a later worker starts
  // later.
  double bubble() const;
};

// The compute and updates of a schedule in the order of its workers.
Turns turns_of(const Schedule& schedule);

// Each turn starts when its worker is free and what it reads is there. `costs` has an entry a stage, `links`
// one for each stage but the last. Throws std::logic_error when the turns cannot all run.
Simulation simulate(const Turns& turns, std::span<const StageCosts> costs, std::span<const LinkCosts> links);

}  // namespace pipeoptim
