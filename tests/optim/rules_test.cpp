// Every rule against a transcription of its formulas in double, written from PyTorch's documentation and
// apart from optim/rule.h.
#include <gtest/gtest.h>

#include <map>

#include "tests/optim/optimizer_run.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

class Transcription {
 public:
  Transcription(const OptimizerConfig& config, const std::vector<float>& weights)
      : config_(config), w_(weights.begin(), weights.end()), first_(w_.size()), second_(w_.size()) {}

  void step(const std::vector<float>& gradients, double lr) {
    ++t_;
    for (std::size_t i = 0; i < w_.size(); ++i) {
      const bool decays = i < 9001 || i >= 9050;
      one(i, static_cast<double>(gradients[i]), lr, decays ? config_.weight_decay : 0);
    }
  }
  // Linear prediction from the formulas of the paper's table.
  double predicted(std::size_t i, double distance) const { return w_[i] - distance * direction_[i]; }
  double weight(std::size_t i) const { return w_[i]; }

 private:
  void one(std::size_t i, double g, double lr, double decay) {
    const OptimizerConfig& c = config_;
    direction_.resize(w_.size());
    double& m = first_[i];
    double& v = second_[i];
    double& d = direction_[i];
    if (c.rule != "adamw") g += decay * w_[i];
    if (c.rule == "sgd") d = g;
    if (c.rule == "sgdm") d = m = t_ == 1 ? g : c.momentum * m + (1 - c.dampening) * g;
    if (c.rule == "nesterov") {
      m = t_ == 1 ? g : c.momentum * m + g;
      d = g + c.momentum * m;
    }
    if (c.rule == "adam" || c.rule == "adamw") {
      m = c.beta1 * m + (1 - c.beta1) * g;
      v = c.beta2 * v + (1 - c.beta2) * g * g;
      d = m / (1 - std::pow(c.beta1, t_)) / (std::sqrt(v / (1 - std::pow(c.beta2, t_))) + c.eps);
      if (c.rule == "adamw") w_[i] *= 1 - lr * decay;
    }
    if (c.rule == "rmsprop") {
      v = c.alpha * v + (1 - c.alpha) * g * g;
      d = g / (std::sqrt(v) + c.eps);
    }
    w_[i] -= lr * d;
  }

  OptimizerConfig config_;
  std::vector<double> w_, first_, second_, direction_;
  int t_ = 0;
};

class Rules : public testing::TestWithParam<std::string> {};

TEST_P(Rules, FollowTheirFormulasOverManySteps) {
  const OptimizerConfig config = lively_config(GetParam());
  const OptimizerArena arena = uneven_arena();
  OptimizerRun run(config, arena);
  Transcription expected(config, run.weights());
  for (int step = 0; step < 200; ++step) {
    const float lr = 0.002f * static_cast<float>(1 + step % 3);
    const auto gradients = normal_values(arena.elements, static_cast<std::uint32_t>(step));
    run.set_gradients(gradients);
    run.update(lr);
    expected.step(gradients, static_cast<double>(lr));
    if (step != 0 && step != 199) continue;
    const float next = 0.004f;
    run.predict(std::vector<float>(3, next));
    const auto weights = run.weights(), predicted = run.predicted();
    for (std::size_t i = 0; i < weights.size(); ++i) {
      ASSERT_NEAR(weights[i], expected.weight(i), tolerance::kRuleSteps)
          << "element " << i << " step " << step;
      ASSERT_NEAR(predicted[i], expected.predicted(i, 3 * static_cast<double>(next)), tolerance::kPrediction)
          << "element " << i << " step " << step;
    }
  }
  EXPECT_EQ(run.status().steps, 200);
  EXPECT_EQ(run.status().skipped, 0);
}

TEST_P(Rules, StateHasPyTorchsNames) {
  OptimizerRun run(lively_config(GetParam()), uneven_arena());
  const auto state = run.optimizer().state();
  ASSERT_EQ(static_cast<int>(state.size()), run.optimizer().slots());
  EXPECT_EQ(optimizer_slots(lively_config(GetParam())), run.optimizer().slots());
  const std::map<std::string, std::string> first = {
      {"sgd", "last_gradient"}, {"sgdm", "momentum_buffer"}, {"nesterov", "momentum_buffer"},
      {"adam", "exp_avg"},      {"adamw", "exp_avg"},        {"rmsprop", "square_avg"}};
  EXPECT_EQ(state[0].first, first.at(GetParam()));
}

TEST_P(Rules, GiveTheSameBitsWithOneAndTwoThreads) {
  OptimizerRun one(lively_config(GetParam()), uneven_arena(), 1);
  OptimizerRun two(lively_config(GetParam()), uneven_arena(), 2);
  for (std::uint32_t step = 0; step < 5; ++step) {
    for (OptimizerRun* run : {&one, &two}) {
      run->set_gradients(normal_values(20011, step));
      run->update_predict(0.01f, {0.01f, 0.02f});
    }
  }
  EXPECT_TRUE(same_bits(one.weights(), two.weights()));
  EXPECT_TRUE(same_bits(one.predicted(), two.predicted()));
  EXPECT_EQ(one.status().gradient_norm, two.status().gradient_norm);
}

TEST_P(Rules, ContinueFromACheckpointBitForBit) {
  OptimizerRun whole(lively_config(GetParam()), uneven_arena());
  OptimizerRun resumed(lively_config(GetParam()), uneven_arena());
  for (std::uint32_t step = 0; step < 6; ++step) {
    if (step == 3) {
      resumed.set_weights(whole.weights());
      for (int slot = 0; slot < whole.optimizer().slots(); ++slot) {
        const auto values = whole.slot(slot);
        copy_from_host(resumed.optimizer().state()[static_cast<std::size_t>(slot)].second, values.data(),
                       values.size() * sizeof(float), Device::host());
      }
      resumed.optimizer().restore_status(resumed.stream(), whole.status());
    }
    whole.set_gradients(normal_values(20011, step));
    whole.update(0.01f);
    if (step < 3) continue;
    resumed.set_gradients(normal_values(20011, step));
    resumed.update(0.01f);
  }
  EXPECT_TRUE(same_bits(whole.weights(), resumed.weights()));
  EXPECT_TRUE(same_bits(whole.all_slots(), resumed.all_slots()));
  EXPECT_EQ(whole.status().steps, resumed.status().steps);
}

INSTANTIATE_TEST_SUITE_P(All, Rules, testing::ValuesIn(optimizer_names()),
                         [](const auto& tested) { return tested.param; });

std::string error_of(const OptimizerConfig& config) {
  try {
    make_optimizer(Device::host(), config, {.elements = 4, .groups = {}, .names = {}});
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(OptimizerConfig, NamesWhatIsWrong) {
  EXPECT_NE(error_of({.rule = "adanw"}).find("did you mean 'adamw'"), std::string::npos);
  EXPECT_NE(error_of({.rule = "sgdn"}).find("did you mean 'sgd'"), std::string::npos);
  EXPECT_THROW(optimizer_slots({.rule = "lion"}), std::invalid_argument);
  const std::vector<std::pair<OptimizerConfig, std::string>> wrong = {
      {{.rule = "sgdm", .momentum = 1}, "momentum"},
      {{.rule = "sgdm", .momentum = -0.1}, "momentum"},
      {{.rule = "sgdm", .dampening = 1.5}, "dampening"},
      {{.rule = "nesterov", .dampening = 0.1}, "dampening"},
      {{.rule = "adam", .beta1 = 1}, "beta1"},
      {{.rule = "adamw", .beta2 = 1 - 1e-12}, "beta2"},
      {{.rule = "adamw", .eps = 0}, "eps"},
      {{.rule = "adam", .eps = 1e-60}, "eps"},
      {{.rule = "rmsprop", .alpha = -1}, "alpha"},
      {{.rule = "rmsprop", .eps = std::nan("")}, "eps"},
      {{.rule = "sgd", .weight_decay = -1}, "weight_decay"},
      {{.rule = "sgd", .clip_norm = INFINITY}, "clip_norm"}};
  for (const auto& [config, name] : wrong) {
    EXPECT_NE(error_of(config).find(name), std::string::npos)
        << config.rule << " " << name << ": " << error_of(config);
  }
  EXPECT_EQ(error_of({.rule = "sgd", .beta1 = 7, .eps = 0}), "") << "sgd reads neither";
}

TEST(OptimizerArena, MustBeCoveredByItsGroups) {
  const auto make = [](OptimizerArena arena) { make_optimizer(Device::host(), {}, std::move(arena)); };
  EXPECT_THROW(make({.elements = 10, .groups = {{0, 4, true}, {5, 10, true}}, .names = {}}),
               std::invalid_argument);
  EXPECT_THROW(make({.elements = 10, .groups = {{0, 9, true}}, .names = {}}), std::invalid_argument);
  EXPECT_THROW(make({.elements = 10, .groups = {}, .names = {{"w", 5, 11}}}), std::invalid_argument);
  EXPECT_NO_THROW(make({.elements = 0, .groups = {}, .names = {}}));
}

}  // namespace
}  // namespace pipeoptim::test
