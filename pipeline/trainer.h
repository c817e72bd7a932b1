// The trainer owns epochs, evaluation and their metrics over an engine. It prints nothing and writes nothing:
// what happens is told to callbacks, in the calling thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "pipeline/engine.h"

namespace pipeoptim {

// Mini-batches of training and of evaluation. A source handed out is used until the next call of the same
// function.
struct TrainerData {
  std::int64_t minibatches = 0;  // of one epoch
  std::function<BatchSource&(std::int64_t epoch, std::int64_t minibatches)> train;
  std::int64_t test_minibatches = 0;  // 0: no evaluation
  std::int64_t test_records = 0;      // without those that fill up the last mini-batch
  std::function<BatchSource&()> test;
};

struct TrainerConfig {
  std::int64_t steps = 0;  // mini-batches in all; may end within an epoch
  std::function<float(std::int64_t step)> learning_rate;
  std::int64_t anneal_steps = 0;    // method "pipemare", see TrainPass
  std::int64_t evaluate_every = 1;  // epochs; 0: at the end only
};

struct EpochResult {
  std::int64_t epoch = 0;  // counted from 1
  std::int64_t step = 0;   // mini-batches trained so far
  double train_loss = 0, train_accuracy = 0;
  std::optional<double> test_loss, test_accuracy;  // where this epoch was evaluated
  double seconds = 0;                              // of its training, evaluation not included
  double samples_per_second = 0;
  float learning_rate = 0;           // of its last mini-batch
  std::int64_t skipped_updates = 0;  // in all, over all stages
};

struct TrainerCallbacks {
  std::function<bool(const StepResult&)> on_step;        // false: end in order
  std::function<void(const VersionRecord&)> on_version;  // after each epoch
  // After its evaluation: the place for checkpoints. False: end in order.
  std::function<bool(const EpochResult&)> on_epoch;
};

struct TrainingResult {
  std::int64_t steps = 0;
  bool interrupted = false;  // a callback ended it
  EpochResult last;
  std::vector<StageTiming> timing;  // summed over the epochs
};

// Throws std::invalid_argument for numbers that do not fit; what the engine throws passes through.
TrainingResult train(Engine& engine, const TrainerData& data, const TrainerConfig& config,
                     const TrainerCallbacks& callbacks);

}  // namespace pipeoptim
