// Models on texts through the program.
#include "tests/app/texts.h"

namespace pipeoptim::test {
namespace {

class Texts : public TextsTest {
 protected:
  Outcome train_gpt(std::vector<std::string> more) const {
    more.insert(more.begin(), {"--lr=0.01", "--optimizer=adamw", "--steps=60"});
    return run(on_text("train", more));
  }
};

TEST_F(Texts, GptLearnsThroughAPipelineAndItsWeightsComeBack) {
  const Outcome outcome = train_gpt({"--stages=3", "--save", out("w.safetensors"), "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json result = Json::parse(outcome.out);
  EXPECT_GT(result.at("test_accuracy").get<double>(), 0.75);
  EXPECT_LT(result.at("test_accuracy").get<double>(), 1);
  // With padding records: the test split's 20 do not divide into mini-batches of 8.
  const Outcome eval =
      run(on_text("eval", {"--stages=2", "--batch-size=3", "--init", out("w.safetensors"), "--json"}));
  ASSERT_EQ(eval.code, 0) << eval.err;
  EXPECT_EQ(Json::parse(eval.out).at("accuracy"), result.at("test_accuracy"));
  EXPECT_NEAR(Json::parse(eval.out).at("loss").get<double>(), result.at("test_loss").get<double>(), 1e-5);
}

TEST_F(Texts, SchedulesWithSplitBackwardsTrainTheSame) {
  std::vector<double> losses;
  for (const char* method : {"1f1b", "zb-h1", "gpipe"}) {
    const Outcome outcome =
        train_gpt({"--steps=10", "--stages=2", "--method", method, "--micro-batches=2", "--json"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    losses.push_back(Json::parse(outcome.out).at("test_loss"));
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(losses[0], losses[2]);
}

TEST_F(Texts, LstmTellsGoodFromBad) {
  const Outcome outcome =
      run(on_reviews({"--lr=0.01", "--optimizer=adam", "--epochs=10", "--stages=2", "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(Json::parse(outcome.out).at("test_accuracy").get<double>(), 1);
}

TEST_F(Texts, MistakesNameTheCulprit) {
  expect_refused(run({"train", "--model", "gpt", "--data", "fashion-mnist"}), 2,
                 {"--model gpt", "running text", "tinyshakespeare", "--data fashion-mnist", "images"});
  expect_refused(run({"train", "--model", "cnn", "--data", "imdb"}), 2,
                 {"--model cnn", "images", "cifar10", "--data imdb"});
  expect_refused(train_gpt({"--heads=3"}), 2, {"--features 16", "--heads 3"});
  expect_refused(train_gpt({"--sequence-length=0"}), 2, {"--sequence-length is 0", "1 to 65536"});
  expect_refused(train_gpt({"--data-dir", scratch("missing.txt")}), 1, {"missing.txt", "no such data"});
  expect_refused(train_gpt({"--sequence-length=2000"}), 1, {"words.txt", "--sequence-length 2000"});
}

}  // namespace
}  // namespace pipeoptim::test
