// Four stages in several processes with a device each: the losses of the host, the bits of one process, and
// an end for all when one fails or is stopped.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/runtime/device.h"
#include "tests/app/cuda/four_stages.h"
#include "tests/app/program.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

class NcclProgram : public ProgramTest {
 protected:
  void SetUp() override {
    if (device_count(Backend::kCuda) < 4) GTEST_SKIP() << "fewer than four CUDA devices";
    ProgramTest::SetUp();
  }

  // `only` are further arguments of single ranks.
  std::vector<pid_t> start_all(int size, const Arguments& arguments,
                               const std::vector<Arguments>& only = {}) const {
    std::vector<pid_t> children;
    for (int rank = 0; rank < size; ++rank) {
      const std::string number = std::to_string(rank);
      Arguments own = joined(arguments, {"--device", "cuda", "--rendezvous", "file:" + scratch("meet")});
      if (rank < static_cast<int>(only.size())) own = joined(own, only[static_cast<std::size_t>(rank)]);
      children.push_back(start(
          own, {"RANK=" + number, "LOCAL_RANK=" + number, "WORLD_SIZE=" + std::to_string(size)}, number));
    }
    return children;
  }
  std::vector<Outcome> finish_all(const std::vector<pid_t>& children) const {
    std::vector<Outcome> outcomes;
    for (std::size_t i = 0; i < children.size(); ++i) {
      outcomes.push_back(finish(children[i], std::to_string(i)));
    }
    return outcomes;
  }
  std::vector<Outcome> run_all(int size, const Arguments& arguments) const {
    return finish_all(start_all(size, arguments));
  }

  static void expect_success(const std::vector<Outcome>& outcomes) {
    for (const Outcome& outcome : outcomes) {
      EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
      EXPECT_EQ(outcome.err, "");
    }
    // The last stage reports, the others are silent.
    for (std::size_t i = 0; i + 1 < outcomes.size(); ++i) EXPECT_EQ(outcomes[i].out, "");
    EXPECT_NE(outcomes.back().out, "");
  }

  // Blocks until so many steps are logged.
  void wait_for_steps(const std::string& log, std::size_t steps) const {
    const bool there = wait_until([&] {
      const std::string text = read_text(log);
      return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) >= steps;
    });
    ASSERT_TRUE(there) << "no progress";
  }
};

class NcclTrain : public NcclProgram, public testing::WithParamInterface<ModelAndMethod> {};

TEST_P(NcclTrain, PrintsTheHostsLosses) {
  const auto& [model, method] = GetParam();
  const Arguments arguments = four_stages(model, method);
  const Outcome host = run(
      joined(arguments, {"--device", "cpu", "--log", out("host"), "--version-trace", out("host-versions")}));
  ASSERT_EQ(host.code, 0) << host.err;
  expect_success(
      run_all(4, joined(arguments, {"--log", out("nccl"), "--version-trace", out("versions.jsonl")})));
  const std::vector<Json> expected = read_lines(out("host")), actual = read_lines(out("nccl"));
  expect_close_losses(actual, expected);
  if (HasFatalFailure()) return;
  const double test_loss = expected[50].at("test_loss");
  EXPECT_NEAR(actual[50].at("test_loss").get<double>(), test_loss,
              tolerance::kDeviceTrajectory * std::max(1.0, test_loss));
  std::string versions;
  for (int rank = 0; rank < 4; ++rank) {
    versions += read_text(out("versions.rank" + std::to_string(rank) + ".jsonl"));
  }
  EXPECT_EQ(versions, read_text(out("host-versions")));
}

INSTANTIATE_TEST_SUITE_P(Models, NcclTrain, models_and_methods(), name_of);

using NcclRun = NcclProgram;

// Two epochs with an evaluation after each; where a stage runs changes no bit, nor do graphs.
TEST_F(NcclRun, SavesTheWeightsOfOneProcess) {
  const Arguments arguments =
      joined(four_stages("mlp", "pipeoptim"),
             {"--steps", "40", "--limit-train", "320", "--optimizer", "adamw", "--lr", "0.01"});
  const Outcome one = run(joined(arguments, {"--device", "cuda", "--save", out("one")}));
  ASSERT_EQ(one.code, 0) << one.err;
  for (const auto& [size, graphs] :
       {std::pair(2, Arguments{}), std::pair(4, Arguments{}), std::pair(4, Arguments{"--cuda-graph"})}) {
    const Arguments files = {"--save",      out("several"), "--run-dir",      out("run"),
                             "--overwrite", "--trace",      out("trace.json")};
    expect_success(run_all(size, joined(joined(arguments, files), graphs)));
    EXPECT_EQ(read_text(out("several")), read_text(out("one")));
    EXPECT_EQ(read_text(out("run") + "/weights.safetensors"), read_text(out("one")));
    EXPECT_EQ(read_lines(out("run") + "/metrics.jsonl").size(), 42U);
    EXPECT_FALSE(read_text(out("trace.rank1.json")).empty());
  }
  const Arguments eval = {"eval",     "--model", "mlp",          "--hidden", "24,20,16",
                          "--stages", "4",       "--batch-size", "16",       "--limit-test",
                          "100",      "--json",  "--init",       out("one")};
  const Outcome expected = run(joined(eval, {"--device", "cuda"}));
  const std::vector<Outcome> actual = run_all(4, eval);
  expect_success(actual);
  EXPECT_EQ(Json::parse(actual[3].out).at("loss"), Json::parse(expected.out).at("loss"));
}

// Nothing says where to meet, but that MPI has started them.
TEST_F(NcclRun, MeetsByMpi) {
#if !defined(PIPEOPTIM_MPIEXEC)
  GTEST_SKIP() << "built without MPI";
#else
  const Arguments arguments = joined(four_stages("mlp", "pipeoptim"), {"--device", "cuda"});
  const Outcome one = run(joined(arguments, {"--save", out("one")}));
  ASSERT_EQ(one.code, 0) << one.err;
  const auto by_mpi = [&](const Arguments& more) {
    const Arguments launched =
        joined({"-n", "4", PIPEOPTIM_PROGRAM}, joined(joined(arguments, {"--save", out("mpi")}), more));
    // Open MPI asks for reasons to run as root, and more processes than there are cores.
    return finish(start(launched,
                        {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                         "OMPI_MCA_rmaps_base_oversubscribe=1"},
                        "", PIPEOPTIM_MPIEXEC));
  };
  const Outcome four = by_mpi({});
  EXPECT_EQ(four.code, 0) << four.out << four.err;
  EXPECT_EQ(read_text(out("mpi")), read_text(out("one")));
  // Three of them are wrong, and the fourth does not wait for them.
  const Outcome wrong = by_mpi({"--world-size", "4", "--rank", "1", "--rendezvous", "mpi"});
  EXPECT_NE(wrong.code, 0);
  EXPECT_NE(wrong.err.find("for MPI, and rank 1 of 4 by options"), std::string::npos) << wrong.err;
#endif
}

TEST_F(NcclRun, EndsWhenAProcessDies) {
  const auto children =
      start_all(4, joined(four_stages("mlp", "pipeoptim"), {"--steps", "3000", "--log", out("log")}));
  wait_for_steps(out("log"), 5);
  kill(children[2], SIGKILL);
  const std::vector<Outcome> outcomes = finish_all(children);
  for (const std::size_t rank : {0U, 1U, 3U}) {
    EXPECT_EQ(outcomes[rank].code, 1);
    EXPECT_NE(outcomes[rank].err.find("rank 2 (stage 2)"), std::string::npos) << outcomes[rank].err;
  }
}

TEST_F(NcclRun, EndsWhenTheLossIsNotFinite) {
  const std::vector<Outcome> outcomes = run_all(4, joined(four_stages("mlp", "pipedream"), {"--lr", "1e30"}));
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.code, 1);
    EXPECT_NE(outcome.err.find("the loss is"), std::string::npos) << outcome.err;
  }
  EXPECT_NE(outcomes[0].err.find("rank 3 (stage 3)"), std::string::npos) << outcomes[0].err;
}

// Whichever process is interrupted, all train the same mini-batches and keep what they have.
TEST_F(NcclRun, StopsTogether) {
  for (const std::size_t interrupted : {0U, 3U}) {
    const std::string log = "log" + std::to_string(interrupted);
    const auto children =
        start_all(4, joined(four_stages("mlp", "pipeoptim"),
                            {"--steps", "3000", "--log", out(log), "--save", out("weights")}));
    wait_for_steps(out(log), 5);
    kill(children[interrupted], SIGINT);
    const std::vector<Outcome> outcomes = finish_all(children);
    for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.code, 130) << outcome.err;
    const std::size_t steps = read_lines(out(log)).size() - 1;
    EXPECT_LT(steps, 3000U);
    EXPECT_NE(outcomes[3].err.find("interrupted after " + std::to_string(steps) + " of 3000 steps"),
              std::string::npos)
        << outcomes[3].err;
    EXPECT_FALSE(read_text(out("weights")).empty());
  }
}

TEST_F(NcclRun, RefusesOtherSettingsInOneProcess) {
  const std::vector<Outcome> outcomes = finish_all(
      start_all(2, joined(four_stages("mlp", "gpipe"), {"--log", out("log")}), {{}, {"--lr", "0.5"}}));
  for (const Outcome& outcome : outcomes) {
    expect_refused(outcome, 2, {"rank 1 (stages 2 to 3)", "lr = 0.5", "lr = 0.0001"});
  }
  const Arguments eval = {"eval", "--model", "mlp", "--stages", "4", "--init", scratch("weights")};
  for (const Outcome& outcome : finish_all(start_all(2, eval, {{}, {"--limit-test", "100"}}))) {
    expect_refused(outcome, 2, {"rank 1 (stages 2 to 3)", "limit-test = 100", "limit-test = 0"});
  }
}

TEST_F(NcclRun, DoesNotWaitForEverForTheOthers) {
  expect_refused(run(joined(four_stages("mlp", "gpipe"),
                            {"--device", "cuda", "--rank", "0", "--world-size", "2", "--rendezvous",
                             "file:" + scratch("meet"), "--rendezvous-timeout", "1", "--log", out("log")})),
                 1, {"missing: rank 1"});
  expect_refused(run(joined(four_stages("mlp", "gpipe"),
                            {"--device", "cuda", "--rank", "1", "--world-size", "2", "--rendezvous",
                             "tcp:127.0.0.1:1", "--rendezvous-timeout", "1", "--log", out("log")})),
                 1, {"rank 1 did not reach rank 0"});
}

}  // namespace
}  // namespace pipeoptim::test
