// Models on texts: the program on CUDA prints the host's losses.
#include <algorithm>
#include <vector>

#include "kernels/runtime/device.h"
#include "tests/app/cuda/four_stages.h"
#include "tests/app/texts.h"

namespace pipeoptim::test {
namespace {

class CudaTexts : public TextsTest {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
    TextsTest::SetUp();
  }
  static Arguments small_steps(const Arguments& more) {
    return joined({"--stages=4", "--steps=50", "--optimizer=sgdm", "--lr=0.01"}, more);
  }
  void expect_the_hosts_losses(const Arguments& arguments) const {
    std::vector<std::vector<double>> losses;
    for (const char* device : {"cpu", "cuda"}) {
      const Outcome outcome = run(joined(arguments, {"--device", device, "--log", out(device)}));
      ASSERT_EQ(outcome.code, 0) << outcome.out << outcome.err;
      losses.emplace_back();
      for (const Json& line : read_lines(out(device))) {  // of steps and of epochs
        if (line.contains("loss")) losses.back().push_back(line.at("loss"));
      }
    }
    ASSERT_EQ(losses[0].size(), 50U);
    ASSERT_EQ(losses[1].size(), 50U);
    for (std::size_t t = 0; t < 50; ++t) {
      EXPECT_NEAR(losses[1][t], losses[0][t], tolerance::kDeviceTrajectory * std::max(1.0, losses[0][t]))
          << "step " << t;
    }
  }
};

TEST_F(CudaTexts, GptPrintsTheHostsLosses) {
  expect_the_hosts_losses(on_text("train", small_steps({"--dropout=0.1"})));
}

TEST_F(CudaTexts, GptWithASplitBackwardPrintsTheHostsLosses) {
  expect_the_hosts_losses(on_text("train", small_steps({"--method=zb-h1", "--micro-batches=4"})));
}

TEST_F(CudaTexts, LstmPrintsTheHostsLosses) {
  expect_the_hosts_losses(on_reviews(small_steps({"--eval-every=0"})));
}

}  // namespace
}  // namespace pipeoptim::test
