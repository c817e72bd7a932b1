// Bad input: exit code 2 for usage, 1 for run-time failures, one clear message, nothing left behind.
#include <cstring>

#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

constexpr const char* kData = "/usr/share/datasets/fashion-mnist/";
constexpr const char* kFiles[] = {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
                                  "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"};

class BadInput : public ProgramTest {
 protected:
  // Every output is asked for: none may appear.
  Outcome refused(std::vector<std::string> more) const {
    for (const char* name : {"log", "version-trace", "trace", "save", "run-dir"}) {
      more.push_back(std::string("--") + name);
      more.push_back(out(name));
    }
    return train(std::move(more));
  }

  // A copy of the data with one file changed.
  std::string data_with(const std::string& file, const std::string& content) const {
    const std::string folder = scratch("data");
    fs::create_directories(folder);
    for (const char* name : kFiles) {
      if (!fs::exists(folder + "/" + name))
        fs::create_symlink(kData + std::string(name), folder + "/" + name);
    }
    fs::remove(folder + "/" + file);
    std::ofstream(folder + "/" + file, std::ios::binary) << content;
    return folder;
  }

  std::string file_with(const std::string& name, const std::string& content) const {
    std::ofstream(scratch(name), std::ios::binary) << content;
    return scratch(name);
  }
};

TEST_F(BadInput, UnknownNamesSuggestTheNearest) {
  expect_refused(refused({"--method", "pipeoptin"}), 2, {"pipeoptin", "did you mean 'pipeoptim'"});
  expect_refused(refused({"--model", "resnet21"}), 2, {"resnet21", "resnet20"});
  expect_refused(refused({"--data", "fashion_mnist"}), 2, {"fashion_mnist", "fashion-mnist"});
  expect_refused(refused({"--optimizer", "adamv"}), 2, {"adamv", "adam"});
  expect_refused(refused({"--horizon", "exat"}), 2, {"exat", "exact"});
  expect_refused(refused({"--predictor", "liner"}), 2, {"liner", "linear"});
  expect_refused(refused({"--lr-schedule", "cosin"}), 2, {"cosin", "cosine"});
  expect_refused(refused({"--device", "gpu"}), 2, {"gpu", "cpu"});
  expect_refused(refused({"--matrix-precision", "bf61"}), 2, {"bf61", "bf16"});
  expect_refused(refused({"--cpu-bind", "autp"}), 2, {"autp", "auto"});
  expect_refused(refused({"--stagess", "2"}), 2, {"--stagess", "'--stages'"});
  expect_refused(run({"trane"}), 2, {"trane", "train"});
  EXPECT_EQ(run({}).code, 2);
}

TEST_F(BadInput, ImpossibleNumbers) {
  expect_refused(refused({"--stages", "9"}), 2, {"9", "8 layers"});
  expect_refused(refused({"--stages", "0"}), 2, {"--stages", "0"});
  expect_refused(refused({"--device", "cpu", "--cuda-graph"}), 2, {"--cuda-graph", "cpu"});
  expect_refused(refused({"--row-kernels", "cudna"}), 2, {"cudna", "cudnn"});
  expect_refused(refused({"--device", "cpu", "--row-kernels", "cudnn"}), 2, {"--row-kernels", "cpu"});
  expect_refused(refused({"--stages", "two"}), 2, {"--stages", "two"});
  expect_refused(refused({"--devices", "-1"}), 2, {"--devices", "-1"});
  expect_refused(refused({"--devices", "9"}), 2, {"--devices 9", "stages"});
  expect_refused(refused({"--device", "cpu", "--devices", "2"}), 1, {"--devices 2", "1 host"});
  expect_refused(refused({"--method", "pipedream-2bw", "--micro-batches", "2"}), 2,
                 {"pipedream-2bw", "3", "got 2"});
  expect_refused(refused({"--micro-batches", "3"}), 2, {"32", "3", "micro-batches"});
  expect_refused(refused({"--batch-size", "0"}), 2, {"--batch-size"});
  expect_refused(refused({"--batch-size", "64", "--limit-train", "50"}), 2, {"64", "50"});
  expect_refused(refused({"--lr", "-1"}), 2, {"--lr is -1;"});
  expect_refused(refused({"--eps", "-1e-9"}), 2, {"--eps is -1e-09;"});
  expect_refused(refused({"--epochs", "4000000000000000000"}), 2, {"--epochs", "1 to 1000000000"});
  expect_refused(refused({"--steps", "4000000000000000000"}), 2, {"--steps"});
  expect_refused(refused({"--lr", "nan"}), 2, {"--lr", "nan"});
  expect_refused(refused({"--beta2", "1"}), 2, {"--beta2", "1"});
  expect_refused(refused({"--beta3", "1"}), 2, {"--beta3", "1"});
  expect_refused(refused({"--momentum", "1.5"}), 2, {"--momentum", "1.5"});
  expect_refused(refused({"--step-decay", "-1"}), 2, {"--step-decay", "-1"});
  expect_refused(refused({"--predictor", "differences"}), 2, {"'differences'", "'difference'"});
  expect_refused(refused({"--optimizer", "sgdm-sc"}), 2, {"'sgdm-sc'", "'sgdm'"});
  expect_refused(refused({"--hidden", "12,x"}), 2, {"--hidden", "12,x"});
  expect_refused(refused({"--cuts", "2,1,3"}), 2, {"cuts"});
  expect_refused(refused({"--cuts", "2,3"}), 2, {"--cuts", "3"});
  expect_refused(refused({"--lr-schedule", "step"}), 2, {"--lr-step-size"});
  expect_refused(refused({"--threads", "0"}), 2, {"--threads"});
  expect_refused(refused({"--steps", "-3"}), 2, {"--steps"});
  expect_refused(run({"eval"}), 2, {"--init"});
}

// A library's threads would wait for ever for those that OpenMP does not give.
TEST_F(BadInput, FewerThreadsThanAreAskedFor) {
  for (const char* limit : {"OMP_THREAD_LIMIT=1", "OMP_MAX_ACTIVE_LEVELS=0"}) {
    const auto arguments = small({"--stages", "1", "--threads", "2", "--save", out("save")});
    const std::string name(limit, std::strchr(limit, '='));
    expect_refused(finish(start(arguments, {limit})), 2, {"2 threads", name});
  }
  EXPECT_EQ(finish(start(small({"--stages", "1"}), {"OMP_THREAD_LIMIT=1"})).code, 0);
}

TEST_F(BadInput, ConfigFiles) {
  expect_refused(refused({"--config", file_with("a.toml", "stagess = 2\n")}), 2, {"stagess", "'stages'"});
  expect_refused(run({"train", "--config", file_with("e.toml", "[defaults]\nstagess = 2\n")}), 2,
                 {"stagess", "'stages'"});
  EXPECT_EQ(train({"--config", file_with("empty.toml", "")}).code, 0);
  expect_refused(refused({"--config", file_with("b.toml", "model = \"mlp\"\nepochs = [[1]]\n")}), 2,
                 {"epochs"});
  expect_refused(refused({"--config", file_with("c.toml", "epochs = \n")}), 2, {"c.toml:1"});
  expect_refused(refused({"--config", file_with("d.toml", "epochs = \"many\"\n")}), 2, {"epochs", "many"});
  expect_refused(refused({"--config", scratch("none.toml")}), 1, {"none.toml"});
}

TEST_F(BadInput, DataFiles) {
  expect_refused(refused({"--data-dir", scratch("nowhere")}), 1, {"nowhere"});
  fs::create_directories(scratch("empty"));
  expect_refused(refused({"--data-dir", scratch("empty")}), 1, {"train-images"});
  const std::string whole = read_text(kData + std::string(kFiles[0]));
  expect_refused(refused({"--data-dir", data_with(kFiles[0], whole.substr(0, whole.size() / 2))}), 1,
                 {kFiles[0]});
  std::string corrupt = whole;
  std::memset(corrupt.data() + corrupt.size() / 2, 0x5a, 64);
  expect_refused(refused({"--data-dir", data_with(kFiles[0], corrupt)}), 1, {kFiles[0]});
  expect_refused(refused({"--data-dir", data_with(kFiles[0], "GIF89a, not an IDX file")}), 1, {kFiles[0]});
  fs::remove_all(scratch("data"));
  expect_refused(refused({"--data-dir", data_with(kFiles[3], read_text(kData + std::string(kFiles[1])))}), 1,
                 {"60000", "10000"});
  expect_refused(refused({"--data", "cifar10", "--data-dir", scratch("empty")}), 1, {"data_batch_1.bin"});
}

TEST_F(BadInput, LabelsOutOfRange) {
  std::string labels("\0\0\x08\x01\0\0\x27\x10", 8);
  labels += std::string(10000, '\0');
  labels[8 + 77] = 10;
  const std::string folder = data_with(kFiles[3], "");
  fs::remove(folder + "/" + kFiles[3]);
  std::ofstream(folder + "/t10k-labels-idx1-ubyte", std::ios::binary) << labels;
  expect_refused(refused({"--data-dir", folder}), 1, {"t10k-labels", "10", "byte 85"});
}

TEST_F(BadInput, WeightFiles) {
  expect_refused(refused({"--init", scratch("none.safetensors")}), 1, {"none.safetensors"});
  expect_refused(refused({"--init", file_with("foreign", "PK\3\4 this is a zip")}), 1, {"foreign"});
  ASSERT_EQ(train({"--save", scratch("w"), "--steps", "1"}).code, 0);
  const std::string whole = read_text(scratch("w"));
  expect_refused(refused({"--init", file_with("cut", whole.substr(0, whole.size() - 100))}), 1, {"cut"});
  expect_refused(refused({"--init", scratch("w"), "--hidden", "24,20,17"}), 1,
                 {"wrong shape", "4.weight is 16x20 in the file, 17x20 in the model"});
  expect_refused(refused({"--init", scratch("w"), "--hidden", "24,20,16,16"}), 1,
                 {"missing: 8.weight, 8.bias"});
  expect_refused(refused({"--init", scratch("w"), "--hidden", "24,20", "--stages", "2"}), 1,
                 {"unexpected: 6.bias"});
}

TEST_F(BadInput, UnwritableOutputsAreFoundBeforeTraining) {
  for (const char* option : {"--log", "--save", "--trace", "--version-trace"}) {
    expect_refused(train({option, scratch("no/such/folder/file"), "--epochs", "100"}), 1, {"no/such/folder"});
    expect_refused(train({option, fs::temp_directory_path().string()}), 1, {"cannot write"});
  }
  expect_refused(train({"--run-dir", file_with("file", "")}), 1, {"cannot write"});
  expect_refused(train({"--log", out("x"), "--save", out("x")}), 2, {"--log", "--save"});
  if (geteuid() != 0) expect_refused(train({"--log", "/proc/version"}), 1, {"cannot write"});
  // What is written as a whole needs the folder behind a link.
  fs::create_symlink(scratch("no/such/weights"), scratch("link"));
  expect_refused(train({"--save", scratch("link"), "--epochs", "100"}), 1, {"link", "cannot write"});
  EXPECT_EQ(train({"--save", "/dev/null"}).code, 0);
}

TEST_F(BadInput, CudaWithoutADevice) {
  const Outcome outcome = refused({"--device", "cuda"});
  if (outcome.code == 0) GTEST_SKIP() << "this machine has a CUDA device";
  expect_refused(outcome, 1, {"--device cuda", "0 CUDA devices"});
}

TEST_F(BadInput, NonFiniteLossStopsWithAdvice) {
  const Outcome outcome = train({"--optimizer", "sgd", "--lr", "1e30", "--log", out("log"), "--save",
                                 out("w"), "--run-dir", out("run")});
  EXPECT_EQ(outcome.code, 1) << outcome.err;
  EXPECT_NE(outcome.err.find("the loss is"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("--lr"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("step "), std::string::npos) << outcome.err;
  EXPECT_FALSE(fs::exists(out("w")));
  EXPECT_GE(read_lines(out("log")).size(), 1U);  // what was measured is kept
  EXPECT_EQ(read_text(out("log")), read_text(out("run") + "/metrics.jsonl"));
}

}  // namespace
}  // namespace pipeoptim::test
