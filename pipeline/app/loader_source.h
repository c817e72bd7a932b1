// A loader as the engine's source of mini-batches.
#pragma once

#include <chrono>
#include <cstdint>

#include "models/data/loader.h"
#include "pipeline/engine.h"

namespace pipeoptim::app {

class LoaderSource final : public BatchSource {
 public:
  explicit LoaderSource(Loader& loader) : loader_(loader) {}
  Batch acquire(std::int64_t t) override {
    const LoadedBatch batch = loader_.acquire(t);
    return {batch.inputs, batch.labels};
  }
  void release(std::int64_t t) override { loader_.release(t); }
  bool wait(std::int64_t t, std::chrono::milliseconds limit) override { return loader_.wait(t, limit); }

 private:
  Loader& loader_;
};

}  // namespace pipeoptim::app
