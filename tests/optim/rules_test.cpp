// Every rule against a transcription of its formulas in double.
#include <gtest/gtest.h>

#include <map>

#include "tests/optim/optimizer_run.h"
#include "tests/optim/transcription.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

class Rules : public testing::TestWithParam<std::string> {};

TEST_P(Rules, FollowTheirFormulasOverManySteps) {
  const OptimizerConfig config = lively_config(GetParam());
  const OptimizerArena arena = uneven_arena();
  OptimizerRun run(config, arena);
  Transcription expected(config, run.weights());
  const int last = config.rule == "muon" ? 29 : 199;  // products in double take their time
  for (int step = 0; step <= last; ++step) {
    const float lr = 0.002f * static_cast<float>(1 + step % 3);
    const auto gradients = normal_values(arena.elements, static_cast<std::uint32_t>(step));
    run.set_gradients(gradients);
    run.update(lr);
    expected.step(gradients, static_cast<double>(lr));
    if (step != 0 && step != last) continue;
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
  EXPECT_EQ(run.status().steps, last + 1);
  EXPECT_EQ(run.status().skipped, 0);
}

TEST_P(Rules, StateHasPyTorchsNames) {
  OptimizerRun run(lively_config(GetParam()), uneven_arena());
  const auto state = run.optimizer().state();
  ASSERT_EQ(static_cast<int>(state.size()), run.optimizer().slots());
  EXPECT_EQ(optimizer_slots(lively_config(GetParam())), run.optimizer().slots());
  const std::map<std::string, std::string> first = {
      {"sgd", "last_gradient"}, {"sgdm", "momentum_buffer"}, {"nesterov", "momentum_buffer"},
      {"adam", "exp_avg"},      {"adamw", "exp_avg"},        {"rmsprop", "square_avg"},
      {"nadam", "exp_avg"},     {"adagrad", "sum"},          {"adan", "previous_gradient"},
      {"lion", "exp_avg"},      {"muon", "momentum_buffer"}, {"sgdm-sc", "momentum_buffer"}};
  EXPECT_EQ(state[0].first, first.at(GetParam()));
  OptimizerConfig tracking = lively_config(GetParam());
  tracking.predictor = Predictor::kDifference;
  OptimizerRun tracked(tracking, uneven_arena());
  EXPECT_EQ(tracked.optimizer().slots(), run.optimizer().slots() + 1);
  EXPECT_EQ(optimizer_slots(tracking), tracked.optimizer().slots());
  EXPECT_EQ(tracked.optimizer().state().back().first, "step_average");
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
  OptimizerConfig config = lively_config(GetParam());
  config.predictor = Predictor::kDifference;  // so that its array is continued as well
  OptimizerRun whole(config, uneven_arena());
  OptimizerRun resumed(config, uneven_arena());
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

INSTANTIATE_TEST_SUITE_P(All, Rules, testing::ValuesIn(all_rules()),
                         [](const auto& tested) { return rule_test_name(tested.param); });

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
  EXPECT_THROW(optimizer_slots({.rule = "lamb"}), std::invalid_argument);
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
      {{.rule = "sgdm-sc", .dampening = 0.1}, "dampening"},
      {{.rule = "sgdm-sc", .delay = -1}, "delay"},
      {{.rule = "nadam", .momentum_decay = -1}, "momentum_decay"},
      {{.rule = "nadam", .beta2 = 1}, "beta2"},
      {{.rule = "adagrad", .eps = 0}, "eps"},
      {{.rule = "adan", .beta3 = 1}, "beta3"},
      {{.rule = "lion", .beta1 = -1}, "beta1"},
      {{.rule = "muon", .momentum = 1}, "momentum"},
      {{.rule = "sgd", .predictor = Predictor::kDifference, .step_decay = 1}, "step_decay"},
      {{.rule = "sgd", .weight_decay = -1}, "weight_decay"},
      {{.rule = "sgd", .clip_norm = INFINITY}, "clip_norm"}};
  for (const auto& [config, name] : wrong) {
    EXPECT_NE(error_of(config).find(name), std::string::npos)
        << config.rule << " " << name << ": " << error_of(config);
  }
  EXPECT_EQ(error_of({.rule = "sgd", .beta1 = 7, .eps = 0}), "") << "sgd reads neither";
}

TEST(OptimizerConfig, FillsInTheRulesOwnDefaults) {
  const auto filled = [](const char* rule) { return with_rule_defaults({.rule = rule}); };
  EXPECT_EQ(filled("adamw").beta2, 0.999);
  EXPECT_EQ(filled("adamw").eps, 1e-8);
  EXPECT_EQ(filled("lion").beta1, 0.9);
  EXPECT_EQ(filled("lion").beta2, 0.99);
  EXPECT_EQ(filled("adan").beta1, 0.98);
  EXPECT_EQ(filled("adan").beta2, 0.92);
  EXPECT_EQ(filled("adagrad").eps, 1e-10);
  EXPECT_EQ(filled("sgdm").momentum, 0.9);
  EXPECT_EQ(filled("muon").momentum, 0.95);
  EXPECT_EQ(with_rule_defaults({.rule = "lion", .beta2 = 0.5}).beta2, 0.5) << "given";
}

TEST(ReleasedDirection, IsThatOfTheAuthorsProgram) {
  OptimizerConfig config = lively_config("sgdm");
  OptimizerRun plain(config, uneven_arena());
  config.momentum_direction = MomentumDirection::kReleasedCode;
  OptimizerRun run(config, uneven_arena());
  EXPECT_EQ(optimizer_slots(config), 2);
  Transcription expected(config, run.weights());
  for (std::uint32_t step = 0; step < 4; ++step) {
    const auto gradients = normal_values(20011, step);
    for (OptimizerRun* one : {&plain, &run}) {
      one->set_gradients(gradients);
      one->update_predict(0.01f, {0.01f, 0.01f});
    }
    expected.step(gradients, static_cast<double>(0.01f));
  }
  EXPECT_TRUE(same_bits(run.weights(), plain.weights())) << "the steps are the same";
  const auto predicted = run.predicted();
  for (std::size_t i = 0; i < predicted.size(); ++i) {
    ASSERT_NEAR(predicted[i], expected.predicted(i, 2 * static_cast<double>(0.01f)), tolerance::kPrediction);
  }
}

TEST(SpikeCompensation, IsPlainMomentumWithoutADelay) {
  OptimizerConfig config{.rule = "sgdm", .momentum = 0.85, .weight_decay = 0.02};
  OptimizerRun plain(config, uneven_arena());
  config.rule = "sgdm-sc";
  OptimizerRun compensated(config, uneven_arena());
  for (std::uint32_t step = 0; step < 5; ++step) {
    for (OptimizerRun* run : {&plain, &compensated}) {
      run->set_gradients(normal_values(20011, step));
      run->update_predict(0.01f, {0.01f, 0.02f});
    }
    ASSERT_TRUE(same_bits(plain.weights(), compensated.weights()));
    ASSERT_TRUE(same_bits(plain.predicted(), compensated.predicted()));
  }
}

// What a gradient has moved once d + 1 steps have passed, on time or all at once.
TEST(SpikeCompensation, MakesUpForTheStepsThatAGradientMissed) {
  const OptimizerArena arena{.elements = 1, .groups = {}, .names = {}};
  OptimizerRun early({.rule = "sgdm", .momentum = 0.5}, arena);
  OptimizerRun late({.rule = "sgdm-sc", .momentum = 0.5, .delay = 3}, arena);
  early.set_gradients({1});
  early.update(0.25f);
  early.set_gradients({0});
  for (int step = 0; step < 3; ++step) early.update(0.25f);
  late.set_gradients({1});
  late.update(0.25f);
  EXPECT_NEAR(late.weights()[0], early.weights()[0], tolerance::kPrediction);
}

TEST(OptimizerArena, MustBeCoveredByItsGroups) {
  const auto make = [](OptimizerArena arena) { make_optimizer(Device::host(), {}, std::move(arena)); };
  EXPECT_THROW(make({.elements = 10, .groups = {{0, 4, true}, {5, 10, true}}, .names = {}}),
               std::invalid_argument);
  EXPECT_THROW(make({.elements = 10, .groups = {{0, 9, true}}, .names = {}}), std::invalid_argument);
  EXPECT_THROW(make({.elements = 10, .groups = {}, .names = {{"w", 5, 11}}}), std::invalid_argument);
  EXPECT_THROW(make({.elements = 10, .groups = {}, .names = {{"w", 0, 10, 3}}}), std::invalid_argument);
  EXPECT_NO_THROW(make({.elements = 0, .groups = {}, .names = {}}));
}

}  // namespace
}  // namespace pipeoptim::test
