// The program on CUDA prints the host's losses, on one device and on all that there are.
#include <algorithm>
#include <string>
#include <vector>

#include "kernels/runtime/device.h"
#include "tests/app/cuda/four_stages.h"
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

class CudaTrain : public ProgramTest, public testing::WithParamInterface<ModelAndMethod> {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
    ProgramTest::SetUp();
  }

  std::vector<Json> losses(const std::string& name, const Arguments& more) const {
    const auto& [model, method] = GetParam();
    const Outcome outcome = run(joined(joined(four_stages(model, method), {"--log", out(name)}), more));
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    return read_lines(out(name));
  }
};

TEST_P(CudaTrain, PrintsTheHostsLosses) {
  const std::vector<Json> expected = losses("host", {"--device", "cpu"});
  const int devices = std::min(4, device_count(Backend::kCuda));
  for (int count = 1; count <= devices; count = count < devices ? devices : devices + 1) {
    SCOPED_TRACE(std::to_string(count) + " devices");
    const Arguments on_cuda = {"--device", "cuda", "--devices", std::to_string(count), "--seed", "0"};
    const std::vector<Json> actual = losses("cuda", on_cuda);
    expect_close_losses(actual, expected);
    if (HasFatalFailure()) return;
    if (std::get<1>(GetParam()) != "pipeoptim") continue;
    const std::vector<Json> graphs = losses("graphs", joined(on_cuda, {"--cuda-graph"}));
    for (std::size_t t = 0; t < 50; ++t) EXPECT_EQ(graphs.at(t).at("loss"), actual[t].at("loss")) << t;
    expect_close_losses(losses("cudnn", joined(on_cuda, {"--row-kernels", "cudnn", "--cuda-graph"})),
                        expected);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaTrain, models_and_methods(), name_of);

}  // namespace
}  // namespace pipeoptim::test
