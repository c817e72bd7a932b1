// `pipeoptim train` and `eval` end to end on Fashion-MNIST: the contract of their files.
#include <signal.h>

#include <cmath>
#include <fstream>
#include <set>
#include <sstream>

#include "kernels/runtime/placement.h"
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

class Train : public ProgramTest {};

TEST_F(Train, LogHasOneLineAMiniBatchAndOneAnEpoch) {
  const Outcome outcome = train({"--log", out("log.jsonl")});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("test accuracy"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("bubble stage 0"), std::string::npos) << outcome.out;
  const std::vector<Json> lines = read_lines(out("log.jsonl"));
  ASSERT_EQ(lines.size(), 13U);
  for (std::size_t t = 0; t < 12; ++t) {
    EXPECT_EQ(lines[t].at("step"), t);
    EXPECT_GT(lines[t].at("loss").get<double>(), 0);
    EXPECT_LT(lines[t].at("loss").get<double>(), 5);
  }
  for (const char* key : {"epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
                          "samples_per_second", "seconds", "lr", "skipped_updates"}) {
    EXPECT_TRUE(lines[12].contains(key)) << key;
  }
  EXPECT_EQ(lines[12].at("epoch"), 1);
  EXPECT_EQ(lines[12].at("skipped_updates"), 0);
  EXPECT_FLOAT_EQ(lines[12].at("lr").get<float>(), 0.05F);  // --lr alone: constant
  EXPECT_LT(lines[11].at("loss").get<double>(), lines[0].at("loss").get<double>());
}

TEST_F(Train, LossesRepeatBitForBitOnAnyNumberOfThreads) {
  ASSERT_EQ(train({"--log", out("a"), "--threads", "1", "--seed", "3"}).code, 0);
  ASSERT_EQ(train({"--log", out("b"), "--threads", "2", "--seed", "3"}).code, 0);
  ASSERT_EQ(train({"--log", out("c"), "--threads", "1", "--seed", "4"}).code, 0);
  const auto a = read_lines(out("a")), b = read_lines(out("b")), c = read_lines(out("c"));
  for (std::size_t t = 0; t < 12; ++t) EXPECT_EQ(a[t], b[t]);
  EXPECT_NE(a[0], c[0]);
}

TEST_F(Train, BindingToCoresChangesNoNumber) {
  if (placement_library().empty()) GTEST_SKIP() << "built without hwloc";
  for (const char* bind : {"none", "auto"}) {
    const Outcome outcome =
        train({"--log", out(bind), "--stages", "2", "--threads", "2", "--cpu-bind", bind});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
  }
  const auto none = read_lines(out("none")), bound = read_lines(out("auto"));
  for (std::size_t t = 0; t < 12; ++t) EXPECT_EQ(none[t], bound[t]);
}

// F1 to F3 and O6 of docs/methods.md.
TEST_F(Train, VersionTraceOfPipeOptim) {
  ASSERT_EQ(train({"--version-trace", out("v"), "--stages", "4"}).code, 0);
  const std::vector<Json> lines = read_lines(out("v"));
  EXPECT_EQ(lines.size(), 4U * 12 * 3);
  for (const Json& line : lines) {
    const int stage = line.at("stage"), t = line.at("minibatch"), version = line.at("version");
    const std::string op = line.at("op");
    const int base = std::max(0, t - (3 - stage));
    EXPECT_FALSE(line.contains("microbatch"));
    if (op == "F") {
      EXPECT_EQ(version, base);
      EXPECT_EQ(line.at("horizon"), t - base);
    } else {
      EXPECT_EQ(version, op == "B" ? t : t + 1);
    }
  }
}

TEST_F(Train, VersionTraceNamesMicroBatches) {
  ASSERT_EQ(
      train({"--version-trace", out("v"), "--method", "gpipe", "--micro-batches", "4", "--steps", "3"}).code,
      0);
  std::set<int> seen;
  for (const Json& line : read_lines(out("v"))) {
    const std::string op = line.at("op");
    if (op == "F") seen.insert(line.at("microbatch").get<int>());
  }
  EXPECT_EQ(seen.size(), 12U);
}

TEST_F(Train, StepsMayPassTheEndOfAnEpoch) {
  ASSERT_EQ(train({"--log", out("log"), "--limit-train", "160", "--steps", "12"}).code, 0);
  const std::vector<Json> lines = read_lines(out("log"));  // epochs of 5, 5 and 2 mini-batches
  ASSERT_EQ(lines.size(), 15U);
  EXPECT_EQ(lines[5].at("epoch"), 1);
  EXPECT_EQ(lines[11].at("epoch"), 2);
  EXPECT_EQ(lines[14].at("epoch"), 3);
  EXPECT_EQ(lines[13].at("step"), 11);
}

TEST_F(Train, SavedWeightsEvaluateToTheSameNumbers) {
  ASSERT_EQ(train({"--log", out("log"), "--save", out("w.safetensors")}).code, 0);
  const Outcome eval = run({"eval", "--model", "mlp", "--hidden", "24,20,16", "--stages", "2", "--batch-size",
                            "64", "--limit-test", "500", "--init", out("w.safetensors"), "--json"});
  ASSERT_EQ(eval.code, 0) << eval.err;
  const Json result = Json::parse(eval.out);
  const Json epoch = read_lines(out("log")).back();
  EXPECT_EQ(result.at("records"), 500);
  EXPECT_EQ(result.at("accuracy"), epoch.at("test_accuracy"));
  // Sums of single-precision logits in another batch size.
  EXPECT_NEAR(result.at("loss").get<double>(), epoch.at("test_loss").get<double>(), 1e-5);
  EXPECT_GE(result.at("accuracy").get<double>(), 0.15);
}

TEST_F(Train, InitContinuesFromSavedWeights) {
  ASSERT_EQ(train({"--save", out("w.safetensors"), "--steps", "1"}).code, 0);
  ASSERT_EQ(train({"--init", out("w.safetensors"), "--log", out("a"), "--steps", "1", "--seed", "1"}).code,
            0);
  ASSERT_EQ(train({"--init", out("w.safetensors"), "--log", out("b"), "--steps", "1", "--seed", "2"}).code,
            0);
  EXPECT_EQ(read_lines(out("a"))[0], read_lines(out("b"))[0]);
}

TEST_F(Train, ChromeTraceHasEveryStageAndStream) {
  ASSERT_EQ(train({"--trace", out("t.json")}).code, 0);
  const Json trace = Json::parse(read_text(out("t.json")));
  std::set<int> stages, streams;
  std::size_t names = 0;
  for (const Json& event : trace.at("traceEvents")) {
    const std::string phase = event.at("ph");
    if (phase == "M") ++names;
    if (phase != "X") continue;
    stages.insert(event.at("pid").get<int>());
    streams.insert(event.at("tid").get<int>());
    EXPECT_GE(event.at("dur").get<double>(), 0);
  }
  EXPECT_EQ(stages.size(), 4U);
  EXPECT_TRUE(streams.contains(0));
  EXPECT_EQ(names, 4U * 4);
}

TEST_F(Train, RunDirectoryKeepsEverythingAndIsNotOverwritten) {
  const std::string dir = out("run");
  ASSERT_EQ(train({"--run-dir", dir}).code, 0);
  for (const char* file : {"config.toml", "metrics.jsonl", "trace.json", "weights.safetensors"}) {
    EXPECT_TRUE(fs::is_regular_file(dir + "/" + file)) << file;
  }
  const auto events =
      std::count_if(fs::directory_iterator(dir), fs::directory_iterator(), [](const auto& entry) {
        return entry.path().filename().string().rfind("events.out.tfevents", 0) == 0;
      });
  EXPECT_EQ(events, 1);
  const Outcome again = train({"--run-dir", dir});
  EXPECT_EQ(again.code, 1);
  EXPECT_NE(again.err.find("--overwrite"), std::string::npos) << again.err;

  // The resolved config makes the same run.
  ASSERT_EQ(run({"train", "--config", dir + "/config.toml", "--log", out("log")}).code, 0);
  const auto first = read_lines(dir + "/metrics.jsonl"), second = read_lines(out("log"));
  ASSERT_EQ(first.size(), second.size());
  for (std::size_t t = 0; t < 12; ++t) EXPECT_EQ(first[t], second[t]);
  const std::string config = dir + "/config.toml";
  EXPECT_EQ(run({"eval", "--config", config, "--init", dir + "/weights.safetensors"}).code, 0);
  EXPECT_EQ(run({"eval", "--config", config, "--init", dir + "/weights.safetensors", "--stages", "2"}).code,
            0);
  ASSERT_EQ(train({"--run-dir", dir, "--overwrite", "--steps", "2"}).code, 0);
  EXPECT_EQ(read_lines(dir + "/metrics.jsonl").size(), 3U);
}

TEST_F(Train, CommandLineOverridesConfigFile) {
  std::ofstream(scratch("c.toml"))
      << "model = \"mlp\"\nhidden = [16, 16]\nstages = 2\nsteps = 9\nlimit-test = 100\n"
         "no-shuffle = true\nlr = 0.01\n";
  ASSERT_EQ(run({"train", "--config", scratch("c.toml"), "--steps", "3", "--log", out("log")}).code, 0);
  const auto lines = read_lines(out("log"));
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_FLOAT_EQ(lines[3].at("lr").get<float>(), 0.01F);
}

TEST_F(Train, SavesIntoAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child =
      start(small({"--save", "/dev/fd/" + std::to_string(ends[1]), "--threads", "1", "--quiet"}));
  close(ends[1]);
  std::string written(1 << 20, '\0');
  std::size_t size = 0;
  for (ssize_t count = 1; count > 0 && size < written.size(); size += static_cast<std::size_t>(count)) {
    count = read(ends[0], written.data() + size, written.size() - size);
  }
  close(ends[0]);
  EXPECT_EQ(finish(child).code, 0);
  ASSERT_EQ(train({"--save", out("file"), "--threads", "1"}).code, 0);
  EXPECT_EQ(written.substr(0, size) == read_text(out("file")), true);
}

// What a run chose for itself is chosen anew where its config is changed; what it was given stays.
TEST_F(Train, AChangedConfigHasTheDefaultsOfTheChange) {
  const std::string config = out("a/config.toml"), changed = out("b/config.toml");
  ASSERT_EQ(
      run({"train", "--model",        "mlp",  "--hidden",  "24,20,16", "--steps", "40",       "--limit-test",
           "100",   "--optimizer",    "adam", "--beta2",   "0.9",      "--costs", "1e-7,2,3", "--lr-schedule",
           "auto",  "--warmup-steps", "-1",   "--run-dir", out("a")})
          .code,
      0);
  const std::string given = read_text(config).substr(0, read_text(config).find("[defaults]"));
  EXPECT_NE(given.find("beta2 = 0.9\n"), std::string::npos) << given;
  EXPECT_NE(given.find("costs = [1e-07, 2.0, 3.0]\n"), std::string::npos) << given;
  EXPECT_EQ(given.find("beta1"), std::string::npos) << given;
  // Another rule, fewer steps than the warm-up had, and another number of layers than was cut.
  ASSERT_EQ(run({"train", "--config", config, "--optimizer", "adan", "--steps", "2", "--hidden",
                 "24,20,16,12,8", "--run-dir", out("b")})
                .code,
            0);
  const std::string text = read_text(changed);
  for (const char* setting : {"beta1 = 0.98\n", "beta2 = 0.9\n", "warmup-steps = 0\n", "steps = 2\n"}) {
    EXPECT_NE(text.find(setting), std::string::npos) << setting << text;
  }
  // Passes over the data replace a number of steps.
  ASSERT_EQ(
      run({"train", "--config", config, "--epochs", "1", "--limit-train", "640", "--log", out("log")}).code,
      0);
  EXPECT_EQ(read_lines(out("log")).size(), 640U / 128 + 1);
}

// Hyper-parameters that were not given take the rule's own defaults, and the run's config tells them.
TEST_F(Train, FillsInTheDefaultsOfItsOptimizer) {
  const std::string dir = out("lion");
  ASSERT_EQ(
      train({"--optimizer", "lion", "--beta1", "0.8", "--predictor", "difference", "--run-dir", dir}).code,
      0);
  std::ostringstream text;
  text << std::ifstream(dir + "/config.toml").rdbuf();
  EXPECT_NE(text.str().find("beta1 = 0.8\n"), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("beta2 = 0.99\n"), std::string::npos) << text.str();
  ASSERT_EQ(run({"train", "--config", dir + "/config.toml", "--log", out("log")}).code, 0);
  const auto first = read_lines(dir + "/metrics.jsonl"), second = read_lines(out("log"));
  for (std::size_t t = 0; t < 12; ++t) EXPECT_EQ(first.at(t), second.at(t));
}

TEST_F(Train, JsonPrintsOneObjectOnly) {
  const Outcome outcome = train({"--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json result = Json::parse(outcome.out);
  EXPECT_EQ(result.at("steps"), 12);
  EXPECT_EQ(result.at("bubble").size(), 4U);
}

TEST_F(Train, EveryMethodOptimizerAndModelRuns) {
  for (const char* method :
       {"sequential", "gpipe", "1f1b", "naive", "pipedream", "pipedream-2bw", "spectrain"}) {
    const bool parts = std::string(method).find("pipe") != std::string::npos;
    const Outcome outcome = train({"--method", method, "--micro-batches", parts ? "4" : "1", "--steps", "3"});
    EXPECT_EQ(outcome.code, 0) << method << ": " << outcome.err;
  }
  for (const char* rule :
       {"sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "nadam", "adan", "lion", "muon"}) {
    const Outcome outcome = train({"--optimizer", rule, "--lr", "0.001", "--clip-norm", "1", "--steps", "3"});
    EXPECT_EQ(outcome.code, 0) << rule << ": " << outcome.err;
  }
  for (const char* model : {"cnn", "resnet20"}) {
    const Outcome outcome = train({"--model", model, "--steps", "2", "--limit-test", "40"});
    EXPECT_EQ(outcome.code, 0) << model << ": " << outcome.err;
  }
}

TEST_F(Train, CtrlCEndsInOrder) {
  const std::vector<std::string> arguments =
      small({"--steps", "1000000", "--log", out("log"), "--save", out("w.safetensors")});
  const pid_t child = start(arguments);
  EXPECT_TRUE(wait_until([&] { return fs::exists(out("log")) && fs::file_size(out("log")) > 0; }));
  kill(child, SIGINT);
  const Outcome outcome = finish(child);
  EXPECT_EQ(outcome.code, 130) << outcome.err;
  EXPECT_NE(outcome.err.find("interrupted after"), std::string::npos) << outcome.err;
  EXPECT_TRUE(fs::is_regular_file(out("w.safetensors")));
  EXPECT_GT(read_lines(out("log")).size(), 1U);
}

// The method's own optimizer, with the method's own default.
TEST_F(Train, AsyncNagRunsWithItsMomentum) {
  ASSERT_EQ(train({"--method", "async-nag", "--run-dir", out("run")}).code, 0);
  EXPECT_NE(read_text(out("run/config.toml")).find("beta1 = 0.99\n"), std::string::npos);
}

}  // namespace
}  // namespace pipeoptim::test
