// PIPEOPTIM_ISA: the choice is shown, refused where it cannot be, and changes no bit of a training.
#include "kernels/runtime/instruction_set.h"

#include "tests/app/texts.h"

namespace pipeoptim::test {
namespace {

class ChosenInstructionSet : public TextsTest {
 protected:
  Outcome run_with(const std::string& set, const std::vector<std::string>& arguments) const {
    return finish(start(arguments, {"PIPEOPTIM_ISA=" + set}));
  }

  // The same weights and metrics, whatever the set.
  void expect_equal_trainings(std::vector<std::string> arguments) const {
    std::string expected;
    for (const InstructionSet set : usable_instruction_sets()) {
      std::vector<std::string> all = arguments;
      all.push_back("--save=" + out(to_string(set)));
      const Outcome outcome = run_with(to_string(set), all);
      ASSERT_EQ(outcome.code, 0) << outcome.err;
      const std::string weights = read_text(out(to_string(set)));
      if (set == InstructionSet::kBaseline) expected = weights;
      ASSERT_FALSE(weights.empty());
      EXPECT_EQ(weights == expected, true) << to_string(set) << " gives other weights than the baseline";
    }
  }
};

TEST_F(ChosenInstructionSet, InfoShowsIt) {
  for (const InstructionSet set : usable_instruction_sets()) {
    const Outcome outcome = run_with(to_string(set), {"info", "--json"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const Json info = Json::parse(outcome.out);
    EXPECT_EQ(info.at("instruction_set"), to_string(set));
    EXPECT_EQ(info.at("instruction_sets").size(), usable_instruction_sets().size());
  }
}

TEST_F(ChosenInstructionSet, OthersAreRefused) {
  expect_refused(run_with("avx511", small()), 2, {"PIPEOPTIM_ISA", "avx511", "did you mean", "baseline"});
  if (usable_instruction_sets().back() != InstructionSet::kAvx512) {
    expect_refused(run_with("avx512", small()), 2, {"PIPEOPTIM_ISA", "avx512", "processor"});
  }
}

TEST_F(ChosenInstructionSet, ConvolutionsTrainTheSame) {
  expect_equal_trainings({"train", "--model=cnn", "--steps=6", "--optimizer=adamw", "--predictor=geometric",
                          "--clip-norm=0.1", "--dropout=0.1", "--batch-size=32", "--limit-test=100",
                          "--device=cpu"});
}

TEST_F(ChosenInstructionSet, TextsTrainTheSame) {
  expect_equal_trainings(on_text("train", {"--steps=4", "--optimizer=nadam", "--dropout=0.1"}));
  expect_equal_trainings(on_reviews({"--steps=4", "--optimizer=muon", "--predictor=difference"}));
}

}  // namespace
}  // namespace pipeoptim::test
