// The program on CUDA prints the host's losses, on one device and on all that there are.
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/runtime/device.h"
#include "tests/app/program.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

using Case = std::tuple<std::string, std::string>;  // model, method

class CudaTrain : public ProgramTest, public testing::WithParamInterface<Case> {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
    ProgramTest::SetUp();
  }

  std::vector<Json> losses(const std::string& name, std::vector<std::string> more) const {
    const auto& [model, method] = GetParam();
    std::vector<std::string> arguments = {"train",
                                          "--model",
                                          model,
                                          "--method",
                                          method,
                                          "--hidden",
                                          "24,20,16",
                                          "--width",
                                          "4",
                                          "--stages",
                                          "4",
                                          "--steps",
                                          "50",
                                          "--batch-size",
                                          "16",
                                          "--no-shuffle",
                                          "--optimizer",
                                          "sgdm",
                                          "--lr",
                                          "0.0001",
                                          "--limit-test",
                                          "64",
                                          "--log",
                                          out(name)};
    if (method == "gpipe") more.insert(more.end(), {"--micro-batches", "4"});
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    return read_lines(out(name));
  }
};

TEST_P(CudaTrain, PrintsTheHostsLosses) {
  const std::vector<Json> expected = losses("host", {"--device", "cpu"});
  ASSERT_EQ(expected.size(), 51U);
  const int devices = std::min(4, device_count(Backend::kCuda));
  for (int count = 1; count <= devices; count = count < devices ? devices : devices + 1) {
    const std::vector<Json> actual =
        losses("cuda", {"--device", "cuda", "--devices", std::to_string(count), "--seed", "0"});
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t t = 0; t < 50; ++t) {
      const double loss = expected[t].at("loss");
      EXPECT_NEAR(actual[t].at("loss").get<double>(), loss,
                  tolerance::kDeviceTrajectory * std::max(1.0, loss))
          << "step " << t << ", " << count << " devices";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaTrain,
                         testing::Combine(testing::Values("mlp", "cnn", "resnet20"),
                                          testing::Values("pipeoptim", "pipedream", "gpipe")),
                         [](const testing::TestParamInfo<Case>& test) {
                           return std::get<0>(test.param) + "_" + std::get<1>(test.param);
                         });

}  // namespace
}  // namespace pipeoptim::test
