// `pipeoptim plan`, `info`, --help and --version.
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

class Plan : public ProgramTest {};

TEST_F(Plan, JsonIsOneObjectWithEveryParameterOnce) {
  const Outcome outcome =
      run({"plan", "--model", "mlp", "--hidden", "256,128,64", "--stages", "4", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json plan = Json::parse(outcome.out);
  ASSERT_EQ(plan.at("stages").size(), 4U);
  std::vector<std::string> parameters;
  std::size_t layers = 0;
  for (const Json& stage : plan.at("stages")) {
    layers += stage.at("layers").size();
    for (const Json& name : stage.at("parameters")) parameters.push_back(name);
    EXPECT_GT(stage.at("bytes").at("total").get<std::size_t>(), 0U);
    EXPECT_GE(stage.at("bytes").at("total"), stage.at("bytes").at("weights"));
  }
  const std::vector<std::string> expected = {"0.weight", "0.bias", "2.weight", "2.bias",
                                             "4.weight", "4.bias", "6.weight", "6.bias"};
  EXPECT_EQ(parameters, expected);
  EXPECT_GE(layers, 7U);
}

TEST_F(Plan, CutsDecideTheStages) {
  const Outcome outcome =
      run({"plan", "--model", "mlp", "--hidden", "32,32", "--stages", "2", "--cuts", "4", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json plan = Json::parse(outcome.out);
  const std::vector<std::string> last = plan.at("stages")[1].at("parameters");
  EXPECT_EQ(last, (std::vector<std::string>{"4.weight", "4.bias"}));
}

TEST_F(Plan, TextShowsMemoryAndSchedule) {
  const Outcome outcome = run({"plan"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* word :
       {"stage 0", "stage 3", "parameters", "stash", "optimizer", "total", "schedule", "F0"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << " not in " << outcome.out;
  }
  EXPECT_EQ(train({"--dry-run", "--log", out("log")}).code, 0);
  EXPECT_TRUE(nothing_written());
}

TEST_F(Plan, InfoNamesEverything) {
  const Outcome text = run({"info"});
  ASSERT_EQ(text.code, 0) << text.err;
  for (const char* word :
       {"pipeoptim", "spectrain", "adamw", "cnn", "fashion-mnist", "cores", "instructions"}) {
    EXPECT_NE(text.out.find(word), std::string::npos) << word;
  }
  EXPECT_EQ(run({"info", "--json"}).code, 0);
  EXPECT_TRUE(Json::accept(run({"info", "--json"}).out));
}

TEST_F(Plan, HelpShowsDefaultsAndVersion) {
  const Outcome help = run({"train", "--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* word : {"--micro-batches", "--version-trace", "pipeoptim", "=128", "fashion-mnist"}) {
    EXPECT_NE(help.out.find(word), std::string::npos) << word;
  }
  const Outcome version = run({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.out.rfind("pipeoptim ", 0), 0U) << version.out;
}

}  // namespace
}  // namespace pipeoptim::test
