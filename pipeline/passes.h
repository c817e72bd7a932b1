// Passes complete a compute schedule. Each works on one stage's program, except the transfers, which need the
// depth.
#pragma once

#include "pipeline/schedule.h"

namespace pipeoptim {

// Versions older than the live one: saves each before the update that overwrites it and assigns its slot.
// Returns the number of version slots.
std::int32_t materialise_versions(Program& program);

// Puts predictions in front of what reads them, and fuses an update with the prediction that follows it. A
// copy that already holds what is wanted is read again. Returns the number of predicted copies.
std::int32_t insert_predictions(Program& program);

// Gives each micro-batch in flight an activation slot: the lowest free one. Returns the number of slots.
std::int32_t assign_slots(Program& program);

// Receives in front of what reads, sends behind what writes.
void insert_transfers(Program& program, std::int32_t stage, std::int32_t depth);

}  // namespace pipeoptim
