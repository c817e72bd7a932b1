// A small MLP with its data, as an engine and as the oracle's simulation.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "layers/activation.h"
#include "layers/linear.h"
#include "layers/softmax_cross_entropy.h"
#include "pipeline/engine.h"
#include "tests/oracles/weight_versions.h"

namespace pipeoptim::test {

// Random records that stay the same for mini-batch t, held in memory.
class RandomBatches final : public BatchSource {
 public:
  RandomBatches(int minibatches, int records, int features, int classes) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int t = 0; t < minibatches; ++t) {
      std::vector<float> inputs(static_cast<std::size_t>(records * features));
      std::vector<std::int32_t> labels(static_cast<std::size_t>(records));
      for (float& value : inputs) value = normal(random);
      for (auto& label : labels) label = static_cast<std::int32_t>(random() % static_cast<unsigned>(classes));
      inputs_.push_back(std::move(inputs));
      labels_.push_back(std::move(labels));
    }
  }
  Batch acquire(std::int64_t t) override {
    const auto at = static_cast<std::size_t>(t + first);
    return {inputs_.at(at).data(), labels_.at(at).data()};
  }
  void release(std::int64_t) override {}
  std::vector<float>& inputs(int t) { return inputs_[static_cast<std::size_t>(t)]; }
  const std::vector<std::int32_t>& labels(int t) const { return labels_[static_cast<std::size_t>(t)]; }

  std::int64_t first = 0;  // mini-batch that a pass's mini-batch 0 is

 private:
  std::vector<std::vector<float>> inputs_;
  std::vector<std::vector<std::int32_t>> labels_;
};

struct SmallMlp {
  std::vector<int> widths{12, 10, 9, 11, 8, 10, 9, 8, 5};  // eight linears: up to eight stages
  int records = 8;

  int linears() const { return static_cast<int>(widths.size()) - 1; }
  // Index of each stage's first linear, as even as whole layers allow.
  std::vector<int> first(int depth) const {
    std::vector<int> first;
    for (int k = 0; k < depth; ++k) first.push_back(k * linears() / depth);
    return first;
  }
  std::vector<std::vector<NamedLayer>> stages(int depth) const {
    std::vector<std::vector<NamedLayer>> stages(static_cast<std::size_t>(depth));
    const std::vector<int> cuts = first(depth);
    for (int k = 0; k < depth; ++k) {
      const int end = k + 1 < depth ? cuts[static_cast<std::size_t>(k) + 1] : linears();
      auto& stage = stages[static_cast<std::size_t>(k)];
      for (int l = cuts[static_cast<std::size_t>(k)]; l < end; ++l) {
        const auto at = static_cast<std::size_t>(l);
        stage.push_back({std::to_string(2 * l), std::make_unique<Linear>(widths[at], widths[at + 1])});
        if (l + 1 < linears()) stage.push_back({std::to_string(2 * l + 1), std::make_unique<ReLU>()});
      }
    }
    return stages;
  }
  std::unique_ptr<Engine> engine(int depth, EngineConfig config) const {
    auto engine = std::make_unique<Engine>(
        std::move(config), stages(depth), std::make_unique<SoftmaxCrossEntropy>(), Shape{records, widths[0]});
    for (const ModelTensor& tensor : engine->tensors()) {
      if (!engine->here(tensor.stage)) continue;
      const int l = std::stoi(tensor.name) / 2;
      engine->write_tensor(tensor.name,
                           tensor.name.ends_with(".weight") ? initial_weight(l) : initial_bias(l));
    }
    return engine;
  }
  std::vector<float> initial_weight(int l) const {
    const auto at = static_cast<std::size_t>(l);
    return values(l, widths[at] * widths[at + 1], 1.2F / std::sqrt(static_cast<float>(widths[at])));
  }
  std::vector<float> initial_bias(int l) const {
    return values(100 + l, widths[static_cast<std::size_t>(l) + 1], 0.1F);
  }
  oracle::Simulation simulation(int depth, oracle::Settings settings) const {
    oracle::Simulation simulation(widths, first(depth), std::move(settings));
    for (int l = 0; l < linears(); ++l) {
      simulation.append_initial(l, initial_weight(l), true);
      simulation.append_initial(l, initial_bias(l), false);
    }
    return simulation;
  }

 private:
  static std::vector<float> values(int seed, int count, float deviation) {
    std::mt19937 random(static_cast<unsigned>(seed));
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& value : out) value = normal(random);
    return out;
  }
};

// Losses of a pass, in order.
inline std::vector<double> train_losses(Engine& engine, BatchSource& source, int minibatches, float lr,
                                        std::vector<VersionRecord>* versions = nullptr,
                                        std::int64_t first_step = 0, std::int64_t anneal_steps = 0) {
  std::vector<double> losses;
  TrainPass pass;
  pass.first_step = first_step;
  pass.minibatches = minibatches;
  pass.anneal_steps = anneal_steps;
  pass.learning_rate = [lr](std::int64_t) { return lr; };
  pass.on_step = [&](const StepResult& step) {
    losses.push_back(step.loss);
    return true;
  };
  if (versions) pass.on_version = [versions](const VersionRecord& record) { versions->push_back(record); };
  engine.train(source, pass);
  return losses;
}

// All trained values, tensor by tensor.
inline std::vector<float> all_weights(const Engine& engine) {
  std::vector<float> all;
  for (const ModelTensor& tensor : engine.tensors()) {
    const std::vector<float> values = engine.read_tensor(tensor.name);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

}  // namespace pipeoptim::test
