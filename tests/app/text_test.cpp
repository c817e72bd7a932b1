// Models on texts through the program.
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

class Texts : public ProgramTest {
 protected:
  // Two words in a fixed order: what follows a space takes more than the letter before it to tell.
  std::string text_file() const {
    std::string text;
    for (int i = 0; i < 600; ++i) text += i % 7 < 4 ? "pipe " : "stage ";
    std::ofstream(scratch("words.txt")) << text;
    return scratch("words.txt");
  }
  std::vector<std::string> gpt(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {"train", "--model",      "gpt",       "--data",
                                          "text",  "--data-dir",   text_file(), "--layers",
                                          "2",     "--features",   "16",        "--heads",
                                          "2",     "--lr",         "0.01",      "--optimizer",
                                          "adamw", "--batch-size", "8",         "--sequence-length",
                                          "16",    "--device",     "cpu",       "--steps",
                                          "60"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string reviews_folder() const {
    const fs::path root = scratch("aclImdb");
    for (const char* split : {"train", "test"}) {
      for (const char* mood : {"pos", "neg"}) {
        fs::create_directories(root / split / mood);
        for (int i = 0; i < 24; ++i) {
          const std::string word = std::string(mood) == "pos" ? "good" : "bad";
          std::ofstream(root / split / mood / (std::to_string(i) + "_5.txt"))
              << "the film number " << i << " was " << word << " from the start, I say";
        }
      }
    }
    return root.string();
  }
};

TEST_F(Texts, GptLearnsThroughAPipelineAndItsWeightsComeBack) {
  const Outcome outcome = run(gpt({"--stages", "3", "--save", out("w.safetensors"), "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json result = Json::parse(outcome.out);
  EXPECT_GT(result.at("test_accuracy").get<double>(), 0.75);
  EXPECT_LT(result.at("test_accuracy").get<double>(), 1);
  const Outcome eval = run({"eval",
                            "--model",
                            "gpt",
                            "--data",
                            "text",
                            "--data-dir",
                            text_file(),
                            "--layers",
                            "2",
                            "--features",
                            "16",
                            "--heads",
                            "2",
                            "--batch-size",
                            "4",
                            "--sequence-length",
                            "16",
                            "--stages",
                            "2",
                            "--init",
                            out("w.safetensors"),
                            "--json"});
  ASSERT_EQ(eval.code, 0) << eval.err;
  EXPECT_EQ(Json::parse(eval.out).at("accuracy"), result.at("test_accuracy"));
  EXPECT_NEAR(Json::parse(eval.out).at("loss").get<double>(), result.at("test_loss").get<double>(), 1e-5);
}

TEST_F(Texts, SchedulesWithSplitBackwardsTrainTheSame) {
  std::vector<double> losses;
  for (const char* method : {"1f1b", "zb-h1", "gpipe"}) {
    const Outcome outcome =
        run(gpt({"--steps", "10", "--stages", "2", "--method", method, "--micro-batches", "2", "--json"}));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    losses.push_back(Json::parse(outcome.out).at("test_loss"));
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_EQ(losses[0], losses[2]);
}

TEST_F(Texts, LstmTellsGoodFromBad) {
  const Outcome outcome = run({"train",
                               "--model",
                               "lstm",
                               "--data",
                               "imdb",
                               "--data-dir",
                               reviews_folder(),
                               "--layers",
                               "2",
                               "--features",
                               "16",
                               "--lr",
                               "0.01",
                               "--optimizer",
                               "adam",
                               "--batch-size",
                               "8",
                               "--epochs",
                               "10",
                               "--sequence-length",
                               "12",
                               "--stages",
                               "2",
                               "--vocabulary",
                               "40",
                               "--json",
                               "--device",
                               "cpu"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(Json::parse(outcome.out).at("test_accuracy").get<double>(), 1);
}

TEST_F(Texts, MistakesNameTheCulprit) {
  expect_refused(run({"train", "--model", "gpt", "--data", "fashion-mnist"}), 2,
                 {"--model gpt", "running text", "tinyshakespeare", "--data fashion-mnist", "images"});
  expect_refused(run({"train", "--model", "cnn", "--data", "imdb"}), 2,
                 {"--model cnn", "images", "cifar10", "--data imdb"});
  expect_refused(run(gpt({"--heads", "3"})), 2, {"--features 16", "--heads 3"});
  expect_refused(run(gpt({"--sequence-length", "0"})), 2, {"--sequence-length is 0", "1 or more"});
  expect_refused(run(gpt({"--data-dir", scratch("missing.txt")})), 1, {"missing.txt", "no such data"});
  expect_refused(run(gpt({"--sequence-length", "2000"})), 1, {"words.txt", "--sequence-length 2000"});
}

}  // namespace
}  // namespace pipeoptim::test
