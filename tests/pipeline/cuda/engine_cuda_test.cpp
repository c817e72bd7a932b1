// Pipelines on CUDA follow the host's: one device, and all devices of the machine with peer copies between.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/support/small_mlp.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

constexpr int kDepth = 4;
constexpr int kSteps = 50;

class CudaEngine : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
  }

  enum class Graphs { kNo, kYes };

  static EngineConfig config(Device device, int devices, Graphs graphs) {
    EngineConfig config;
    config.cuda_graph = graphs == Graphs::kYes;
    config.method = GetParam();
    config.device = device;
    config.devices = devices;
    config.optimizer.rule = "adamw";
    config.microbatches_per_update = GetParam() == "gpipe" || GetParam() == "pipedream-2bw" ? 4 : 1;
    return config;
  }

  struct Run {
    std::vector<double> losses;
    std::vector<VersionRecord> versions;
    std::vector<StageTiming> timing;
  };
  static Run run(Device device, int devices, Graphs graphs = Graphs::kNo) {
    const SmallMlp mlp;
    RandomBatches batches(kSteps, mlp.records, mlp.widths.front(), mlp.widths.back());
    const auto engine = mlp.engine(kDepth, config(device, devices, graphs));
    Run run;
    run.losses = train_losses(*engine, batches, kSteps, 0.003F, &run.versions);
    run.timing = engine->stage_timing();
    return run;
  }

  static void expect_as_on_the_host(int devices) {
    const Run expected = run(Device::host(), 1);
    const Run actual = run(Device::cuda(0), devices);
    ASSERT_EQ(actual.losses.size(), expected.losses.size());
    for (std::size_t t = 0; t < expected.losses.size(); ++t) {
      EXPECT_NEAR(actual.losses[t], expected.losses[t],
                  tolerance::kTrajectory * std::max(1.0, expected.losses[t]))
          << "step " << t;
    }
    ASSERT_EQ(actual.versions.size(), expected.versions.size());
    for (std::size_t i = 0; i < expected.versions.size(); ++i) {
      EXPECT_EQ(actual.versions[i].op, expected.versions[i].op) << i;
      EXPECT_EQ(actual.versions[i].version, expected.versions[i].version) << i;
      EXPECT_EQ(actual.versions[i].horizon, expected.versions[i].horizon) << i;
    }
    for (const StageTiming& timing : actual.timing) {
      EXPECT_GT(timing.busy_seconds, 0);
      EXPECT_GE(timing.total_seconds, timing.busy_seconds * 0.999);
    }
  }
};

TEST_P(CudaEngine, FollowsTheHostOnOneDevice) { expect_as_on_the_host(1); }

TEST_P(CudaEngine, FollowsTheHostOnSeveralDevices) {
  const int devices = std::min(kDepth, device_count(Backend::kCuda));
  if (devices < 2) GTEST_SKIP() << "one CUDA device";
  expect_as_on_the_host(devices);
}

TEST_P(CudaEngine, GraphsChangeNoBit) {
  const int devices = std::min(kDepth, device_count(Backend::kCuda));
  const Run plain = run(Device::cuda(0), devices);
  const Run graphs = run(Device::cuda(0), devices, Graphs::kYes);
  EXPECT_EQ(graphs.losses, plain.losses);
  ASSERT_EQ(graphs.versions.size(), plain.versions.size());
  for (std::size_t i = 0; i < plain.versions.size(); ++i) {
    EXPECT_EQ(graphs.versions[i].version, plain.versions[i].version) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, CudaEngine,
                         testing::Values("pipeoptim", "pipedream", "pipedream-2bw", "gpipe", "spectrain"),
                         [](const testing::TestParamInfo<std::string>& method) {
                           std::string name = method.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace pipeoptim::test
