// One label for each position of a record.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pipeline/engine.h"
#include "tests/support/small_mlp.h"

namespace pipeoptim::test {
namespace {

constexpr int kSteps = 6;

std::unique_ptr<Engine> engine_of(const SmallMlp& mlp, const Shape& input, EngineConfig config, int depth) {
  auto engine = std::make_unique<Engine>(std::move(config), mlp.stages(depth),
                                         std::make_unique<SoftmaxCrossEntropy>(), input);
  for (const ModelTensor& tensor : engine->tensors()) {
    const int l = std::stoi(tensor.name) / 2;
    engine->write_tensor(tensor.name,
                         tensor.name.ends_with(".weight") ? mlp.initial_weight(l) : mlp.initial_bias(l));
  }
  return engine;
}

class Positions : public testing::TestWithParam<int> {};  // micro-batches

// Eight records of three positions are 24 records of one: the linears see the same rows.
TEST_P(Positions, CountAsRecords) {
  constexpr int kRecords = 8, kLength = 3, kDepth = 2;
  SmallMlp mlp;
  const int features = mlp.widths.front();
  EngineConfig config;
  config.method = GetParam() == 1 ? "pipeoptim" : "1f1b";
  config.microbatches_per_update = GetParam();
  RandomBatches batches(kSteps, kRecords * kLength, features, mlp.widths.back());
  const auto sequences = engine_of(mlp, {kRecords, kLength, features}, config, kDepth);
  const auto rows = engine_of(mlp, {kRecords * kLength, features}, config, kDepth);
  std::vector<StepResult> of_sequences, of_rows;
  const auto run = [&](Engine& engine, std::vector<StepResult>& steps) {
    TrainPass pass;
    pass.minibatches = kSteps;
    pass.learning_rate = [](std::int64_t) { return 0.01F; };
    pass.on_step = [&](const StepResult& step) {
      steps.push_back(step);
      return true;
    };
    return engine.train(batches, pass);
  };
  const PassResult a = run(*sequences, of_sequences), b = run(*rows, of_rows);
  ASSERT_EQ(of_sequences.size(), of_rows.size());
  for (std::size_t t = 0; t < of_rows.size(); ++t) {
    EXPECT_EQ(of_sequences[t].loss, of_rows[t].loss);
    EXPECT_EQ(of_sequences[t].correct, of_rows[t].correct);
    EXPECT_EQ(of_sequences[t].labels, kRecords * kLength);
    EXPECT_EQ(of_sequences[t].records, kRecords);
    EXPECT_EQ(of_rows[t].records, kRecords * kLength);
  }
  EXPECT_EQ(all_weights(*sequences), all_weights(*rows));
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(a.labels, b.labels);
  const PassResult test = sequences->evaluate(batches, kSteps);
  EXPECT_EQ(test.loss, rows->evaluate(batches, kSteps).loss);
  EXPECT_EQ(test.labels, kSteps * kRecords * kLength);
}

INSTANTIATE_TEST_SUITE_P(Microbatches, Positions, testing::Values(1, 4));

}  // namespace
}  // namespace pipeoptim::test
