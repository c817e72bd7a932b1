// One training run as options describe it: data, loaders, engine and first weights.
#pragma once

#include <cstdint>
#include <memory>

#include "models/data/loader.h"
#include "pipeline/app/loader_source.h"
#include "pipeline/app/options.h"
#include "pipeline/app/setup.h"
#include "pipeline/engine.h"
#include "pipeline/trainer.h"

namespace pipeoptim::app {

struct RunData {
  std::shared_ptr<const Dataset> train, test;
};

RunData load_run_data(const Options& options);

class TrainingRun {
 public:
  // Settles in `options` what was left to the program: cuts, learning-rate schedule, epochs. The options
  // outlive the run.
  TrainingRun(Options& options, Device device, const RunData& data, std::unique_ptr<Engine> engine);

  // From --seed or --init. With several processes the first call that connects them, so that what all have to
  // agree on comes before it.
  void set_first_weights();

  Engine& engine() { return *engine_; }
  std::int64_t steps() const { return config_.steps; }
  std::int64_t minibatches() const { return train_loader_.minibatches(); }  // of an epoch
  std::int64_t test_records() const { return test_loader_.dataset().records(); }
  std::int64_t epochs() const { return options_.epochs; }

  TrainingResult train(const TrainerCallbacks& callbacks);

 private:
  void settle();
  TrainerData data();

  Options& options_;
  std::unique_ptr<Engine> engine_;
  Loader train_loader_, test_loader_;
  LoaderSource train_source_, test_source_;
  TrainerConfig config_;
};

}  // namespace pipeoptim::app
