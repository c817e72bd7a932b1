// `pipeoptim compare` and `pipeoptim simulate`.
#include <cmath>
#include <csignal>

#include "pipeline/app/comparison.h"
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

class Compare : public ProgramTest {
 protected:
  Outcome compare(std::vector<std::string> more) const {
    std::vector<std::string> arguments = {
        "compare", "--model",  "mlp",         "--hidden", "24,20,16",     "--steps", "12",
        "--lr",    "0.05",     "--optimizer", "sgdm",     "--batch-size", "32",      "--limit-test",
        "500",     "--stages", "2",           "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
};

TEST_F(Compare, TrainsEveryMethodAndWritesEveryForm) {
  const Outcome outcome = compare({"--methods", "sequential,pipeoptim+paper,gpipe+micro-batches=4", "--seeds",
                                   "2", "--run-dir", out("study")});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* word :
       {"sequential", "pipeoptim+paper", "gpipe+micro-batches=4", "samples/s", "comparison.html"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << outcome.out;
  }
  const Json all = Json::parse(read_text(out("study/comparison.json")));
  ASSERT_EQ(all.at("methods").size(), 3U);
  for (const Json& method : all.at("methods")) {
    ASSERT_EQ(method.at("runs").size(), 2U);
    for (const Json& run : method.at("runs")) {
      EXPECT_EQ(run.at("losses").size(), 12U);
      EXPECT_TRUE(run.at("steps_to_target").is_number()) << "the default target is reached by all";
    }
  }
  const std::string csv = read_text(out("study/comparison.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 3 * 2);
  const std::string page = read_text(out("study/comparison.html"));
  EXPECT_EQ(page.find("http"), std::string::npos) << "the page needs no network";
  EXPECT_NE(page.find("<polyline"), std::string::npos);
}

// A run within a comparison is the run that `train` makes.
TEST_F(Compare, EqualsTraining) {
  ASSERT_EQ(
      compare({"--methods", "pipedream", "--seeds", "1", "--seed", "5", "--run-dir", out("study")}).code, 0);
  const Outcome single =
      run({"train",  "--model",  "mlp",         "--hidden",      "24,20,16",     "--steps",  "12",
           "--lr",   "0.05",     "--optimizer", "sgdm",          "--batch-size", "32",       "--limit-test",
           "500",    "--stages", "2",           "--device",      "cpu",          "--method", "pipedream",
           "--seed", "5",        "--log",       out("log.jsonl")});
  ASSERT_EQ(single.code, 0) << single.err;
  const Json all = Json::parse(read_text(out("study/comparison.json")));
  const Json& losses = all.at("methods")[0].at("runs")[0].at("losses");
  const std::vector<Json> log = read_lines(out("log.jsonl"));
  for (std::size_t t = 0; t < losses.size(); ++t) EXPECT_EQ(losses[t], log.at(t).at("loss")) << "step " << t;
}

// A method that diverges is a result, and the others go on.
TEST_F(Compare, KeepsDivergedRuns) {
  const Outcome outcome = compare(
      {"--methods", "sequential,pipeoptim", "--seeds", "1", "--lr", "1e30", "--run-dir", out("study")});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("1 diverged"), std::string::npos) << outcome.out;
  const Json all = Json::parse(read_text(out("study/comparison.json")));
  for (const Json& method : all.at("methods")) {
    EXPECT_TRUE(method.at("runs").empty());
    EXPECT_EQ(method.at("diverged").size(), 1U);
  }
}

// Hyper-parameters that nobody gave are those of the rule that trains, whichever way it was chosen.
TEST_F(Compare, GivesEachRuleItsOwnDefaults) {
  const std::vector<std::string> lion = {
      "--model",      "mlp", "--hidden",     "24,20,16", "--steps",  "12", "--lr",     "0.001",
      "--batch-size", "32",  "--limit-test", "500",      "--stages", "2",  "--device", "cpu"};
  std::vector<std::string> compared = {"compare", "--methods", "naive+lion", "--seeds",
                                       "1",       "--run-dir", out("study")};
  std::vector<std::string> single = {"train", "--method", "naive",         "--optimizer",
                                     "lion",  "--log",    out("log.jsonl")};
  compared.insert(compared.end(), lion.begin(), lion.end());
  single.insert(single.end(), lion.begin(), lion.end());
  ASSERT_EQ(run(compared).code, 0);
  ASSERT_EQ(run(single).code, 0);
  const Json all = Json::parse(read_text(out("study/comparison.json")));
  EXPECT_EQ(all.at("methods")[0].at("runs")[0].at("losses")[11],
            read_lines(out("log.jsonl")).at(11).at("loss"));
}

TEST_F(Compare, ItsConfigMakesTheSameRunsAgain) {
  ASSERT_EQ(
      run({"compare", "--model", "mlp", "--hidden", "24", "--steps", "12", "--limit-test", "500", "--stages",
           "2", "--device", "cpu", "--methods", "pipeoptim", "--seeds", "1", "--run-dir", out("a")})
          .code,
      0);
  ASSERT_EQ(run({"compare", "--config", out("a/config.toml"), "--run-dir", out("b")}).code, 0);
  const auto losses = [&](const char* folder) {
    return Json::parse(read_text(out(folder) + "/comparison.json"))
        .at("methods")[0]
        .at("runs")[0]
        .at("losses");
  };
  EXPECT_EQ(losses("a"), losses("b"));
}

TEST_F(Compare, InterruptedInItsFirstRunItLeavesNothingBehind) {
  const pid_t child = start({"compare", "--model", "mlp", "--epochs", "1000", "--stages", "2", "--device",
                             "cpu", "--methods", "pipeoptim", "--run-dir", out("study")});
  EXPECT_TRUE(
      wait_until([&] { return read_text(scratch("stdout")).find("(run 1 of") != std::string::npos; }));
  kill(child, SIGINT);
  const Outcome outcome = finish(child);
  EXPECT_EQ(outcome.code, 130) << outcome.err;
  EXPECT_EQ(outcome.out.find("comparison.html"), std::string::npos) << outcome.out;
  EXPECT_TRUE(fs::is_empty(out("study")));
}

// What a training chose for its method is not for others.
TEST_F(Compare, TakesNoChoicesFromATraining) {
  ASSERT_EQ(run({"train", "--model", "mlp", "--hidden", "24", "--steps", "4", "--limit-test", "100",
                 "--stages", "2", "--device", "cpu", "--optimizer", "adamw", "--run-dir", out("trained")})
                .code,
            0);
  ASSERT_EQ(run({"compare", "--config", out("trained/config.toml"), "--run-dir", out("study")}).code, 0);
  const std::string config = read_text(out("study/config.toml"));
  EXPECT_EQ(config.find("beta1"), std::string::npos) << config;
}

TEST_F(Compare, RefusesWhatItCannotRunBeforeItRuns) {
  expect_refused(compare({"--methods", "sequential,pipeoptin"}), 2, {"pipeoptin", "'pipeoptim'"});
  expect_refused(compare({"--methods", "pipeoptim+papper"}), 2, {"'papper'"});
  expect_refused(compare({"--methods", "pipeoptim+stages=x"}), 2, {"whole number"});
  expect_refused(compare({"--methods", "gpipe+micro-batches=3"}), 2, {"micro-batches", "32"});
  expect_refused(compare({"--seeds", "0"}), 2, {"--seeds"});
}

TEST(Comparison, SpreadIsThatOfTheSample) {
  const app::Spread spread = app::spread({1, 2, 6});
  EXPECT_DOUBLE_EQ(spread.mean, 3);
  EXPECT_DOUBLE_EQ(spread.deviation, std::sqrt((4.0 + 1 + 9) / 2));
  EXPECT_EQ(app::spread({4}).deviation, 0);
}

TEST(Comparison, CountsTheStepsToALoss) {
  app::ComparedRun run;
  for (int t = 0; t < 200; ++t) run.losses.push_back(10.0 - t * 0.05);
  // Means of the last four steps: 1.5 steps behind.
  EXPECT_EQ(app::steps_to(run, 5.0), 103);
  EXPECT_EQ(app::steps_to(run, -1.0), std::nullopt);
  app::Contender slow{"slow", {1}, {1}, {run}, {}};
  app::Contender fast = slow;
  for (double& loss : fast.runs[0].losses) loss /= 2;
  EXPECT_NEAR(app::common_loss({slow, fast}), 10 - 199 * 0.05 + 1.5 * 0.05, 1e-12);
}

class Simulate : public ProgramTest {};

TEST_F(Simulate, AgreesWithTheClosedForms) {
  const auto bubble = [&](const std::string& method) {
    const Outcome outcome =
        run({"simulate", "--method", method, "--stages", "4", "--micro-batches", "16", "--json"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return Json::parse(outcome.out).at("bubble").get<double>();
  };
  EXPECT_DOUBLE_EQ(bubble("1f1b"), 9);
  EXPECT_DOUBLE_EQ(bubble("interleaved"), 4.5);
  EXPECT_DOUBLE_EQ(bubble("zb-h1"), 3);
  EXPECT_DOUBLE_EQ(bubble("zb-h2"), 0);
  EXPECT_DOUBLE_EQ(bubble("zb-v"), 0);
}

TEST_F(Simulate, TakesTheCostsOfATrace) {
  ASSERT_EQ(run({"train", "--model", "mlp", "--hidden", "64,64", "--stages", "2", "--steps", "30", "--device",
                 "cpu", "--limit-test", "500", "--trace", out("trace.json"), "--lr", "0.001"})
                .code,
            0);
  const Outcome outcome = run({"simulate", "--stages", "2", "--costs-from", out("trace.json"), "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json all = Json::parse(outcome.out);
  EXPECT_EQ(all.at("workers").size(), 2U);
  EXPECT_GT(all.at("time").get<double>(), 0);
  EXPECT_GT(all.at("measured_time").get<double>(), 0);
  EXPECT_EQ(run({"simulate", "--stages", "3", "--costs-from", out("trace.json")}).code, 1);
}

TEST_F(Simulate, TakesAnyNumberOfMicrobatches) {
  EXPECT_EQ(run({"simulate", "--method", "zb-h2", "--stages", "64", "--micro-batches", "256", "--costs",
                 "1,1.2,0.9"})
                .code,
            0);
}

TEST_F(Simulate, RefusesBadCosts) {
  EXPECT_EQ(run({"simulate", "--costs", "1,2"}).code, 2);
  EXPECT_EQ(run({"simulate", "--costs", "1,2,0"}).code, 2);
  EXPECT_EQ(run({"simulate", "--link-costs", "1"}).code, 2);
  const Outcome missing = run({"simulate", "--costs-from", scratch("missing.json")});
  EXPECT_EQ(missing.code, 1);
  EXPECT_NE(missing.err.find("missing.json"), std::string::npos) << missing.err;
}

}  // namespace
}  // namespace pipeoptim::test
