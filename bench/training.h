// A model to train, and something to train it with.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/support.h"
#include "models/zoo.h"
#include "pipeline/engine.h"

namespace pipeoptim::bench {

struct Case {
  const char* model;
  ModelOptions options;
  std::int64_t records;  // in a mini-batch
  const char* rule;
  std::int64_t minibatches;  // in a pass
};

// What both step_bench and stages_bench train, with as many mini-batches as a pass is to have.
inline Case mlp(std::int64_t minibatches) {
  return {"mlp", {.hidden = {1024, 1024}}, 128, "adamw", minibatches};
}
inline Case resnet20(std::int64_t minibatches) {
  return {"resnet20", {.image = {32, 32, 3}}, 128, "sgdm", minibatches};
}
inline Case gpt(std::int64_t minibatches) { return {"gpt", {}, 16, "adamw", minibatches}; }

// `function` of a state and a case; both are named after the model.
#define PIPEOPTIM_TRAINING(function, model, ...)  \
  BENCHMARK_CAPTURE(function, model, __VA_ARGS__) \
      ->UseManualTime()                           \
      ->Iterations(3)                             \
      ->Unit(benchmark::kMillisecond)

// The same random mini-batch again and again.
class SyntheticBatch final : public BatchSource {
 public:
  SyntheticBatch(const Case& c, const Shape& input)
      : inputs_(random_buffer(input.elements(), 1, MemoryKind::kPinned)) {
    const DataKind kind = model_data(c.model);
    const std::int64_t classes = kind == DataKind::kRunningText ? c.options.vocabulary : c.options.classes;
    const std::int64_t labels = kind == DataKind::kRunningText ? input.elements() : input[0];
    for (std::int64_t i = 0; i < labels; ++i) labels_.push_back(static_cast<std::int32_t>(i % classes));
    if (kind == DataKind::kImages) return;
    write_tokens({inputs_.data(), inputs_.size()}, c.options.vocabulary);
  }
  Batch acquire(std::int64_t) override { return {inputs_.data(), labels_.data()}; }
  void release(std::int64_t) override {}

 private:
  Buffer<float> inputs_;
  std::vector<std::int32_t> labels_;
};

}  // namespace pipeoptim::bench
