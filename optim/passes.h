// The passes over a stage's elements that a rule is made into: the update, the prediction, and both in one.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels/runtime/host/uncached.h"
#include "optim/step_elements.h"

namespace pipeoptim {

// The body of all passes, over chunks whose predicted elements are of one type. What a step has decided on
// the device (skipped, or none completed yet) is looked up once a chunk and chooses the loop.
template <typename Rule, Update kUpdate, Prediction kPrediction, typename Ahead>
struct StepBody {
  using LongRows = void;  // chunks
  StepArguments<Rule> arguments;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const StepState& state = *arguments.state;
    const bool updates = kUpdate != Update::kNone && state.skip == 0;
    if (updates) {
      run<kUpdate, kPrediction>(row, team);  // completes a step, so that there is a direction
    } else if constexpr (kPrediction != Prediction::kNone) {
      if (state.scalars.steps == 0) {
        run<Update::kNone, Prediction::kCopy>(row, team);
      } else {
        run<Update::kNone, kPrediction>(row, team);
      }
    }
  }

  template <Update kUpdateNow, Prediction kPredictionNow, typename Team>
  PO_HD void run(std::int64_t row, const Team& team) const {
    const ArenaChunk chunk = arguments.chunks[row];
#if !defined(__CUDA_ARCH__)
    if constexpr (kPredictionNow != Prediction::kNone) {
      constexpr bool kCoasts = kPredictionNow == Prediction::kGeometric && CoastsByStep<Rule>;
      if (kCoasts || arguments.uncached) return run_by_blocks<kUpdateNow, kPredictionNow>(chunk, team);
    }
#endif
    for_all_elements(elements<kUpdateNow, kPredictionNow>(chunk, ahead()), chunk.begin, chunk.end, team);
  }

  template <Update kUpdateNow, Prediction kPredictionNow, typename Stored>
  PO_HD StepElements<Rule, kUpdateNow, kPredictionNow, Stored> elements(const ArenaChunk& chunk,
                                                                        Stored* predicted) const {
    const StepArguments<Rule>& a = arguments;
    return {a.rule,
            a.coast,
            a.slots,
            a.slot_stride,
            a.step_average,
            a.step_decay,
            a.one_minus_step_decay,
            a.weights,
            a.gradients,
            predicted,
            {a.state->scalars, a.in_memory == nullptr ? a.lr : a.in_memory->lr, chunk.weight_decay},
            a.state->gradient_scale,
            a.in_memory == nullptr ? a.travel : a.in_memory->travel};
  }

  PO_HD Ahead* ahead() const {
    if constexpr (std::is_same_v<Ahead, Bf16>) {
      return arguments.rounded;
    } else {
      return arguments.predicted;
    }
  }

#if !defined(__CUDA_ARCH__)
  // On the host: where predictions coast in loops, or are written past the caches, by blocks that stay in the
  // first-level cache meanwhile.
  static constexpr std::int64_t kBlockElements = 256;

  template <Update kUpdateNow, Prediction kPredictionNow, typename Team>
  PO_HD void run_by_blocks(const ArenaChunk& chunk, const Team& team) const {
    ArenaChunk block = chunk;
    for (; block.begin < chunk.end; block.begin = block.end) {
      block.end = block.begin + kBlockElements < chunk.end ? block.begin + kBlockElements : chunk.end;
      if (!arguments.uncached) {
        fill<kUpdateNow, kPredictionNow>(block, team, ahead());
        continue;
      }
      alignas(64) Ahead values[kBlockElements];
      fill<kUpdateNow, kPredictionNow>(block, team, counted_from(block.begin, values));
      host::copy_uncached(ahead() + block.begin, values,
                          static_cast<std::size_t>(block.end - block.begin) * sizeof(Ahead));
    }
    if (arguments.uncached) host::end_uncached();
  }

  template <Update kUpdateNow, Prediction kPredictionNow, typename Team>
  PO_HD void fill(const ArenaChunk& block, const Team& team, Ahead* values) const {
    if constexpr (kPredictionNow == Prediction::kGeometric && CoastsByStep<Rule>) {
      // In loops over the block; the same operations in the same order, in fp32 until the last step.
      float unrounded[kBlockElements];
      float* coasting = counted_from(block.begin, unrounded);
      if constexpr (std::is_same_v<Ahead, float>) coasting = values;
      for_all_elements(elements<kUpdateNow, Prediction::kCopy>(block, coasting), block.begin, block.end,
                       team);
      for (int i = 0; i < arguments.coast->steps; ++i) {
        const CoastElements<Rule> step{arguments.rule, arguments.slots,          arguments.slot_stride,
                                       coasting,       arguments.coast->step[i], block.weight_decay};
        for_all_elements(step, block.begin, block.end, team);
      }
      if constexpr (std::is_same_v<Ahead, Bf16>) {
        for_all_elements(RoundElements{coasting, values}, block.begin, block.end, team);
      }
    } else {
      for_all_elements(elements<kUpdateNow, kPredictionNow>(block, values), block.begin, block.end, team);
    }
  }
#endif
};

// One launch over the chunks of each type that the predicted elements have.
template <typename Rule, Update kUpdate, Prediction kPrediction>
void launch_body(Stream& stream, ChunkList chunks, StepArguments<Rule> given) {
  given.chunks = chunks.data;
  if constexpr (kPrediction != Prediction::kNone) {
    given.uncached = host::leaves_caches(chunks.rounded * kChunkElements, sizeof(Bf16));
    for_each_row(stream, chunks.rounded, kChunkElements, StepBody<Rule, kUpdate, kPrediction, Bf16>{given});
    given.chunks += chunks.rounded;
    chunks.count -= chunks.rounded;
  }
  given.uncached = host::leaves_caches(chunks.count * kChunkElements, sizeof(float));
  for_each_row(stream, chunks.count, kChunkElements, StepBody<Rule, kUpdate, kPrediction, float>{given});
}

template <typename Rule, Update kUpdate>
void launch_update(Stream& stream, const ChunkList& chunks, Prediction prediction,
                   const StepArguments<Rule>& given) {
  // A step is tracked for the predictor that needs it, and for no other.
  constexpr bool kDirection = kUpdate != Update::kTrackedStep, kAverage = kUpdate != Update::kStep;
  switch (prediction) {
    case Prediction::kNone:
      if constexpr (kUpdate != Update::kNone) {
        return launch_body<Rule, kUpdate, Prediction::kNone>(stream, chunks, given);
      }
      break;
    case Prediction::kCopy:
      return launch_body<Rule, kUpdate, Prediction::kCopy>(stream, chunks, given);
    case Prediction::kLinear:
      if constexpr (kDirection) return launch_body<Rule, kUpdate, Prediction::kLinear>(stream, chunks, given);
      break;
    case Prediction::kGeometric:
      if constexpr (kDirection) {
        return launch_body<Rule, kUpdate, Prediction::kGeometric>(stream, chunks, given);
      }
      break;
    case Prediction::kDifference:
      if constexpr (kAverage) {
        return launch_body<Rule, kUpdate, Prediction::kDifference>(stream, chunks, given);
      }
      break;
  }
  throw std::logic_error("an optimizer's pass that no predictor has");
}

// The pass over `chunks`.
template <typename Rule>
void launch_pass(Stream& stream, const ChunkList& chunks, Update update, Prediction prediction,
                 const StepArguments<Rule>& given) {
  switch (update) {
    case Update::kNone:
      return launch_update<Rule, Update::kNone>(stream, chunks, prediction, given);
    case Update::kStep:
      return launch_update<Rule, Update::kStep>(stream, chunks, prediction, given);
    case Update::kTrackedStep:
      return launch_update<Rule, Update::kTrackedStep>(stream, chunks, prediction, given);
  }
}

}  // namespace pipeoptim
