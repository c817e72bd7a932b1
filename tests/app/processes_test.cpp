// The program as one of several processes, as far as that goes without a device.
#include "tests/app/program.h"

namespace pipeoptim::test {
namespace {

class Processes : public ProgramTest {
 protected:
  Outcome train(const std::vector<std::string>& more, const std::vector<std::string>& environment) const {
    return finish(start(small(more), environment));
  }
};

TEST_F(Processes, OneOfOneIsAnOrdinaryRun) {
  const Outcome outcome = train({"--stages", "2"}, {"RANK=0", "WORLD_SIZE=1", "LOCAL_RANK=0"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
}

TEST_F(Processes, TheirNumberDividesThatOfTheStages) {
  const std::vector<std::string> arguments = {"--device", "cuda", "--stages", "4", "--log", out("log")};
  expect_refused(train(arguments, {"RANK=0", "WORLD_SIZE=3"}), 2, {"3 processes", "--stages 4"});
  expect_refused(train(arguments, {"RANK=0", "WORLD_SIZE=8"}), 2, {"8 processes", "--stages 4"});
}

TEST_F(Processes, NeedADeviceEach) {
  expect_refused(train({"--stages", "2", "--log", out("log")}, {"RANK=0", "WORLD_SIZE=2"}), 2,
                 {"--device cuda"});
  expect_refused(train({"--device", "cuda", "--stages", "2", "--devices", "2", "--log", out("log")},
                       {"RANK=0", "WORLD_SIZE=2"}),
                 2, {"--devices 2"});
}

TEST_F(Processes, NeedAPlaceToMeet) {
  const std::vector<std::string> arguments = {"--device", "cuda", "--stages", "2", "--log", out("log")};
  expect_refused(train(arguments, {"RANK=0", "WORLD_SIZE=2"}), 2, {"--rendezvous", "MASTER_ADDR"});
  std::vector<std::string> wrong = arguments;
  wrong.insert(wrong.end(), {"--rendezvous", "here"});
  expect_refused(train(wrong, {"RANK=0", "WORLD_SIZE=2"}), 2, {"'here'"});
}

TEST_F(Processes, RanksAreChecked) {
  expect_refused(train({"--device", "cuda", "--rank", "1", "--log", out("log")}, {}), 2, {"--world-size"});
  expect_refused(train({"--device", "cuda", "--rank", "4", "--world-size", "4", "--log", out("log")}, {}), 2,
                 {"rank 4 of 4"});
  expect_refused(train({"--device", "cuda", "--log", out("log")}, {"RANK=x", "WORLD_SIZE=4"}), 2,
                 {"RANK", "'x'"});
}

TEST_F(Processes, APlanIsMadeByOne) {
  std::vector<std::string> arguments = {"plan", "--model", "mlp", "--stages", "2", "--device", "cpu"};
  EXPECT_EQ(finish(start(arguments, {"RANK=0", "WORLD_SIZE=3"})).code, 0);
}

}  // namespace
}  // namespace pipeoptim::test
