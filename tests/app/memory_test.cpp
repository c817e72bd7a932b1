// What `plan` says of memory against what a training on the host takes.
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // shadow memory counts as memory of the process
#else
constexpr bool kSanitized = false;
#endif

class Memory : public ProgramTest, public testing::WithParamInterface<std::vector<std::string>> {};

// Stacks, code made at run time and what oneDNN packs matrices into are not planned: next to a model of some
// hundred MiB they are little.
TEST_P(Memory, IsWithinATenthOfThePlan) {
  if (kSanitized) GTEST_SKIP() << "needs a build without sanitizers";
  std::vector<std::string> arguments = GetParam();
  arguments.insert(arguments.end(), {"--data", "synthetic", "--device", "cpu", "--json"});
  const auto with = [&](const std::string& command, const std::vector<std::string>& more) {
    std::vector<std::string> all = {command};
    all.insert(all.end(), arguments.begin(), arguments.end());
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  };
  const Outcome outcome = with("plan", {});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json plan = Json::parse(outcome.out);
  std::size_t planned = 0;
  for (const Json& stage : plan.at("stages")) {
    const Json& bytes = stage.at("bytes");
    planned += bytes.at("total").get<std::size_t>();
    // Two versions of the weights at most.
    EXPECT_LE(bytes.at("predicted").get<std::size_t>() + bytes.at("versions").get<std::size_t>(),
              bytes.at("weights").get<std::size_t>());
  }
  const Outcome trained =
      with("train", {"--steps", "8", "--lr", "0.0001", "--limit-test", "128", "--threads", "2"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  const Json memory = Json::parse(trained.out).at("memory");
  EXPECT_EQ(memory.at("planned"), planned);
  const double ratio = memory.at("most").get<double>() / static_cast<double>(planned);
  RecordProperty("ratio", std::to_string(ratio));
  EXPECT_GE(ratio, 0.9);
  EXPECT_LE(ratio, 1.1);
}

INSTANTIATE_TEST_SUITE_P(Models, Memory,
                         testing::Values(std::vector<std::string>{"--model", "mlp", "--hidden", "4096,4096",
                                                                  "--stages", "3"},
                                         std::vector<std::string>{"--model", "resnet20", "--stages", "4"}));

}  // namespace
}  // namespace pipeoptim::test
