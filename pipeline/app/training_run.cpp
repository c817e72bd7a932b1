#include "pipeline/app/training_run.h"

#include <utility>

namespace pipeoptim::app {
namespace {

// What "auto" leaves open, once the number of steps is known.
void settle_schedule(LrScheduleConfig& lr, bool lr_given, std::int64_t steps) {
  const bool automatic = lr.kind == "auto";
  if (automatic) lr.kind = lr_given ? "constant" : "cosine";
  if (lr.warmup_steps < 0) lr.warmup_steps = automatic && !lr_given ? steps / 20 : 0;
  lr.total_steps = steps;
}

}  // namespace

RunData load_run_data(const Options& options) {
  return {load_data(options, Split::kTrain), load_data(options, Split::kTest)};
}

TrainingRun::TrainingRun(Options& options, Device device, const RunData& data, std::unique_ptr<Engine> engine)
    : options_(options),
      engine_(std::move(engine)),
      train_loader_(make_train_loader(options, data.train, device)),
      test_loader_(make_test_loader(options, data.test, device)),
      train_source_(train_loader_),
      test_source_(test_loader_) {
  settle();
}

void TrainingRun::set_first_weights() {
  if (options_.init.empty()) {
    initialise(*engine_, options_.seed);
  } else {
    load_weights(*engine_, options_.init);
  }
}

void TrainingRun::settle() {
  options_.cuts.clear();
  int layers = 0;
  for (const StageInfo& stage : engine_->stage_info()) {
    if (layers > 0) options_.cuts.push_back(layers);
    layers += static_cast<int>(stage.layers.size());
  }
  if (options_.steps > 0) {
    options_.epochs = (options_.steps + train_loader_.minibatches() - 1) / train_loader_.minibatches();
  }
  config_.steps = options_.steps > 0 ? options_.steps : options_.epochs * train_loader_.minibatches();
  config_.evaluate_every = options_.eval_every;
  settle_schedule(options_.lr, options_.lr_given, config_.steps);
  config_.learning_rate = [rates = LrSchedule(options_.lr)](std::int64_t step) { return rates.at(step); };
  if (options_.pipemare_anneal < 0) options_.pipemare_anneal = config_.steps / 4;
  config_.anneal_steps = options_.pipemare_anneal;
}

TrainerData TrainingRun::data() {
  TrainerData data;
  data.minibatches = train_loader_.minibatches();
  data.train = [this](std::int64_t epoch, std::int64_t) -> BatchSource& {
    train_loader_.start_epoch(epoch);
    return train_source_;
  };
  data.test_minibatches = test_loader_.minibatches();
  data.test_records = test_loader_.dataset().records();
  data.test = [this]() -> BatchSource& {
    test_loader_.start_epoch(0);
    return test_source_;
  };
  return data;
}

TrainingResult TrainingRun::train(const TrainerCallbacks& callbacks) {
  return pipeoptim::train(*engine_, data(), config_, callbacks);
}

}  // namespace pipeoptim::app
