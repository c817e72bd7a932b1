#include "pipeline/trainer.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace pipeoptim {
namespace {

void check(const TrainerData& data, const TrainerConfig& config) {
  if (data.minibatches < 1 || !data.train)
    throw std::invalid_argument("training needs at least one mini-batch");
  if (config.steps < 1) {
    throw std::invalid_argument("training needs at least one step, got " + std::to_string(config.steps));
  }
  if (data.test_minibatches > 0 && (!data.test || data.test_records < 1)) {
    throw std::invalid_argument("an evaluation needs records");
  }
  if (!config.learning_rate) throw std::invalid_argument("training needs a learning rate");
}

// One training run; its state is what epochs hand to the next one.
class Run {
 public:
  Run(Engine& engine, const TrainerData& data, const TrainerConfig& config, const TrainerCallbacks& callbacks)
      : engine_(engine), data_(data), config_(config), callbacks_(callbacks) {}

  TrainingResult operator()() {
    while (result_.steps < config_.steps && !result_.interrupted) epoch();
    return std::move(result_);
  }

 private:
  void epoch() {
    const std::int64_t number = result_.last.epoch;
    const std::int64_t wanted = std::min(data_.minibatches, config_.steps - result_.steps);
    TrainPass pass;
    pass.first_step = result_.steps;
    pass.minibatches = wanted;
    pass.learning_rate = config_.learning_rate;
    pass.anneal_steps = config_.anneal_steps;
    pass.on_version = callbacks_.on_version;
    pass.on_step = [&](const StepResult& step) {
      if (callbacks_.on_step && !callbacks_.on_step(step)) result_.interrupted = true;
      return !result_.interrupted;
    };
    const PassResult train = engine_.train(data_.train(number, wanted), pass);
    result_.steps += train.minibatches;
    result_.interrupted = result_.interrupted || train.stopped;
    if (train.minibatches == 0) return;  // stopped before it began
    describe(number + 1, train);
    if (due()) evaluate();
    if (!callbacks_.on_epoch || callbacks_.on_epoch(result_.last)) return;
    result_.interrupted = result_.interrupted || result_.steps < config_.steps;
  }

  void describe(std::int64_t number, const PassResult& train) {
    EpochResult& epoch = result_.last;
    epoch = {};
    epoch.epoch = number;
    epoch.step = result_.steps;
    epoch.train_loss = train.loss;
    epoch.train_accuracy = train.accuracy_of(train.records);
    epoch.seconds = train.seconds;
    epoch.samples_per_second = train.seconds > 0 ? static_cast<double>(train.records) / train.seconds : 0;
    epoch.learning_rate = config_.learning_rate(std::max<std::int64_t>(0, result_.steps - 1));
    for (const OptimizerStatus& status : engine_.optimizer_status()) epoch.skipped_updates += status.skipped;
    const std::vector<StageTiming> timing = engine_.stage_timing();
    result_.timing.resize(std::max(result_.timing.size(), timing.size()));
    for (std::size_t k = 0; k < timing.size(); ++k) {
      result_.timing[k].busy_seconds += timing[k].busy_seconds;
      result_.timing[k].total_seconds += timing[k].total_seconds;
    }
  }

  bool due() const {
    if (data_.test_minibatches == 0 || result_.interrupted) return false;
    if (result_.steps >= config_.steps) return true;
    return config_.evaluate_every > 0 && result_.last.epoch % config_.evaluate_every == 0;
  }

  void evaluate() {
    const PassResult test = engine_.evaluate(data_.test(), data_.test_minibatches);
    result_.last.test_loss = test.loss_of(data_.test_records);
    result_.last.test_accuracy = test.accuracy_of(data_.test_records);
  }

  Engine& engine_;
  const TrainerData& data_;
  const TrainerConfig& config_;
  const TrainerCallbacks& callbacks_;
  TrainingResult result_;
};

}  // namespace

TrainingResult train(Engine& engine, const TrainerData& data, const TrainerConfig& config,
                     const TrainerCallbacks& callbacks) {
  check(data, config);
  return Run(engine, data, config, callbacks)();
}

}  // namespace pipeoptim
