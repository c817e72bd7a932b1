// What a step needs beside the elements: the arena cut into chunks, and the scalars in device memory.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "optim/guard.h"
#include "optim/optimizer.h"

namespace pipeoptim {

// Chunks in device memory, in the order of the arena.
struct ChunkList {
  const ArenaChunk* data = nullptr;
  std::int64_t count = 0;
  std::int64_t rounded = 0;  // the first ones, whose predicted copy is bf16
};

class ArenaChunks {
 public:
  ArenaChunks() = default;
  ArenaChunks(Device device, const std::vector<ArenaChunk>& chunks, std::int64_t rounded_elements);

  ChunkList list() const { return {chunks_.data(), static_cast<std::int64_t>(chunks_.size()), rounded_}; }

 private:
  Buffer<ArenaChunk> chunks_;
  std::int64_t rounded_ = 0;
};

// Validates the arena.
class StepPlan {
 public:
  StepPlan(Device device, const OptimizerConfig& config, StepDecays decays, OptimizerArena arena);

  // One pass over the gradient: decides about the coming step.
  void begin_step(Stream& stream, const float* gradients);
  void plan_coast(Stream& stream, LearningRates rates);
  void plan_coast(Stream& stream, const StepRates* rates);  // in the device's memory
  void restore(Stream& stream, const OptimizerStatus& from);
  void copy_status(Stream& stream, OptimizerStatus* to);

  std::int64_t elements() const { return elements_; }
  std::int64_t rounded_elements() const { return rounded_elements_; }
  ChunkList chunks() const { return chunks_.list(); }
  const StepState* state() const { return state_.data(); }
  const CoastPlan* coast() const { return coast_.data(); }

 private:
  std::int64_t elements_ = 0;
  std::int64_t rounded_elements_ = 0;
  StepDecays decays_;
  double clip_norm_ = 0;
  ArenaChunks chunks_;
  Buffer<ArenaRange> names_;
  Buffer<double> partials_;
  Buffer<StepState> state_;
  Buffer<CoastPlan> coast_;
};

// Groups of the arena; one where it names none.
std::vector<ArenaRange> arena_groups(const OptimizerArena& arena);

// Appends chunks for the elements of `range`. The last rounded element ends a chunk.
void cut(const ArenaRange& range, double weight_decay, std::int64_t rounded_elements,
         std::vector<ArenaChunk>& chunks);

// Throws std::invalid_argument where the predictor cannot look so far or lacks the learning rates.
void require_lookahead(Predictor predictor, const Lookahead& ahead);

// What a prediction multiplies the direction, or the average step, by.
float travel(Predictor predictor, const Lookahead& ahead);

// Elements from one slot array to the next.
std::int64_t slot_stride(std::int64_t elements);

// Throws std::invalid_argument where the accesses of 16 bytes on CUDA could not be made.
void require_step_alignment(Device device, std::initializer_list<const void*> arrays);

template <typename T>
Buffer<T> on_device(Device device, const std::vector<T>& values) {
  Buffer<T> buffer(device, values.size());
  if (!values.empty()) copy_from_host(buffer.data(), values.data(), values.size() * sizeof(T), device);
  return buffer;
}

}  // namespace pipeoptim
