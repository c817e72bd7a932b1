// How the processes of a run find each other, exchange, fail and stop together. Here they are threads, and
// forked processes where one has to die.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/runtime/error.h"
#include "pipeline/processes/identity.h"
#include "pipeline/processes/mpi_meeting.h"
#include "pipeline/processes/process_group.h"
#include "pipeline/processes/socket.h"

namespace pipeoptim::test {
namespace {

using namespace std::chrono_literals;

class Variables : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK",
                             "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "PMI_SIZE",
                             "MPI_LOCALRANKID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
                             "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"}) {
      unsetenv(name);
    }
  }
  void TearDown() override { SetUp(); }
  static void set(const char* name, const char* value) { setenv(name, value, 1); }
};

using Identity = Variables;

TEST_F(Identity, WithoutAnythingThereIsOneProcess) {
  set("SLURM_PROCID", "0");
  set("SLURM_NTASKS", "4");  // of the job, in a batch script
  const ProcessIdentity identity = find_identity({}, {});
  EXPECT_EQ(identity.rank, 0);
  EXPECT_EQ(identity.size, 1);
}

TEST_F(Identity, ComesFromTheLauncher) {
  const std::vector<std::vector<const char*>> launchers = {
      {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
      {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
      {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"}};
  for (const auto& names : launchers) {
    SetUp();
    set(names[0], "5");
    set(names[1], "8");
    set(names[2], "1");
    const ProcessIdentity identity = find_identity({}, {});
    EXPECT_EQ(identity.rank, 5) << names[0];
    EXPECT_EQ(identity.size, 8) << names[0];
    EXPECT_EQ(identity.local_rank, 1) << names[0];
  }
}

TEST_F(Identity, OptionsWin) {
  set("RANK", "5");
  set("WORLD_SIZE", "8");
  set("LOCAL_RANK", "1");
  const ProcessIdentity identity = find_identity(2, 4);
  EXPECT_EQ(identity.rank, 2);
  EXPECT_EQ(identity.size, 4);
  EXPECT_EQ(identity.local_rank, 2);
}

TEST_F(Identity, RefusesWhatIsNoRank) {
  EXPECT_THROW(find_identity(0, {}), std::invalid_argument);
  EXPECT_THROW(find_identity({}, 4), std::invalid_argument);
  EXPECT_THROW(find_identity(4, 4), std::invalid_argument);
  set("RANK", "one");
  set("WORLD_SIZE", "2");
  EXPECT_THROW(find_identity({}, {}), std::invalid_argument);
}

TEST_F(Identity, MeetingPlaces) {
  EXPECT_EQ(find_meeting_place("file:/tmp/x:1").file, "/tmp/x:1");
  EXPECT_EQ(find_meeting_place("tcp:node1:29500").address.host, "node1");
  EXPECT_EQ(find_meeting_place("tcp:node1:29500").address.port, 29500);
  for (const char* wrong :
       {"", "node1:29500", "tcp:node1", "tcp::1", "tcp:a:b", "tcp:a:70000", "tcp:a:0", "file:"}) {
    EXPECT_THROW(find_meeting_place(wrong), std::invalid_argument) << wrong;
  }
  set("MASTER_ADDR", "node2");
  set("MASTER_PORT", "1000");
  set("PMI_RANK", "0");
  EXPECT_EQ(find_meeting_place("").address.port, 1000);
  set("TORCHELASTIC_USE_AGENT_STORE", "True");
  EXPECT_EQ(find_meeting_place("").address.port, 1001);
  set("MASTER_PORT", "65535");
  EXPECT_THROW(find_meeting_place(""), std::invalid_argument);
}

TEST_F(Identity, MpiIsAMeetingPlaceWhereItIsBuiltIn) {
  for (const char* launched : {"PMI_RANK", "OMPI_COMM_WORLD_RANK"}) {
    SetUp();
    set(launched, "0");
    if (built_with_mpi()) {
      EXPECT_TRUE(find_meeting_place("").by_mpi);
      EXPECT_TRUE(find_meeting_place("mpi").by_mpi);
      EXPECT_FALSE(find_meeting_place("tcp:node1:29500").by_mpi);
    } else {
      EXPECT_THROW(find_meeting_place(""), std::invalid_argument);
      EXPECT_THROW(find_meeting_place("mpi"), std::invalid_argument);
    }
  }
}

class Processes : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "pipeoptim-meet-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    place_.file = (folder_ / "place").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  ProcessGroupOptions options(int rank, int size, std::chrono::milliseconds limit = 20s) const {
    ProcessGroupOptions options;
    options.identity = {rank, size, rank};
    options.place = place_;
    options.time_limit = limit;
    return options;
  }

  // What each of `size` threads with a group throws; empty: nothing.
  std::vector<std::string> run(int size, const std::function<void(ProcessGroup&)>& body) const {
    std::vector<std::string> errors(static_cast<std::size_t>(size));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          ProcessGroup group(options(rank, size));
          body(group);
        } catch (const std::exception& error) {
          errors[static_cast<std::size_t>(rank)] = error.what();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return errors;
  }
  void expect_success(int size, const std::function<void(ProcessGroup&)>& body) const {
    for (const std::string& error : run(size, body)) EXPECT_EQ(error, "");
  }

  std::filesystem::path folder_;
  MeetingPlace place_;
};

ProcessGroup::Bytes bytes_of(const std::string& text) {
  ProcessGroup::Bytes bytes(text.size());
  if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

void exchange_a_few_times(ProcessGroup& group) {
  for (int round = 0; round < 3; ++round) {
    const std::string mine(static_cast<std::size_t>(100'000 * group.rank() + round), 'a');
    const auto all = group.all_gather(bytes_of(mine));
    ASSERT_EQ(all.size(), static_cast<std::size_t>(group.size()));
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      EXPECT_EQ(all[rank].size(), 100'000 * rank + static_cast<std::size_t>(round));
    }
    const auto gathered = group.gather(bytes_of(std::to_string(group.rank())));
    EXPECT_EQ(gathered.size(), group.rank() == 0 ? all.size() : 0);
    group.barrier();
  }
}

TEST_F(Processes, MeetInAFile) {
  for (const int size : {1, 2, 5}) {
    expect_success(size, exchange_a_few_times);
    EXPECT_FALSE(std::filesystem::exists(place_.file));
  }
}

TEST_F(Processes, MeetAtAPort) {
  const std::uint16_t port = port_of(listen_on(0));  // free a moment ago
  place_ = {{"127.0.0.1", port}, ""};
  expect_success(3, exchange_a_few_times);
}

TEST_F(Processes, PassOverTheFileOfAnEarlierRun) {
  std::filesystem::create_directories(folder_);
  const std::uint16_t port = port_of(listen_on(0));
  FILE* file = std::fopen(place_.file.c_str(), "w");
  std::fprintf(file, "8101744224014066737 127.0.0.1 %d 17\n", port);
  std::fclose(file);
  expect_success(2, exchange_a_few_times);
}

TEST_F(Processes, SayWhoIsMissing) {
  try {
    const ProcessGroup group(options(0, 3, 100ms));
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("missing: rank 1, rank 2"), std::string::npos) << error.what();
  }
}

TEST_F(Processes, SayThatRankZeroDoesNotAnswer) {
  place_ = {{"127.0.0.1", port_of(listen_on(0))}, ""};
  try {
    const ProcessGroup group(options(1, 2, 100ms));
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("rank 1 did not reach rank 0"), std::string::npos)
        << error.what();
  }
}

TEST_F(Processes, RefuseAnotherNumberOfProcesses) {
  std::thread other([&] { EXPECT_THROW(ProcessGroup(options(1, 3, 5s)), DeviceError); });
  EXPECT_THROW(ProcessGroup(options(0, 2, 500ms)), DeviceError);
  other.join();
}

TEST_F(Processes, EndTogetherWhenOneFails) {
  for (const int culprit : {0, 1, 2}) {
    const auto errors = run(3, [&](ProcessGroup& group) {
      group.barrier();
      if (group.rank() == culprit) {
        group.fail("out of luck");
        return;
      }
      while (true) group.throw_if_failed();
    });
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == culprit) continue;
      const std::string& error = errors[static_cast<std::size_t>(rank)];
      EXPECT_NE(error.find("rank " + std::to_string(culprit) + ": out of luck"), std::string::npos) << error;
    }
  }
}

TEST_F(Processes, ACallDoesNotWaitForOneThatHasFailed) {
  const auto errors = run(3, [](ProcessGroup& group) {
    if (group.rank() == 1) throw std::runtime_error("early");
    group.barrier();
  });
  EXPECT_NE(errors[0].find("rank 1: it ended early"), std::string::npos) << errors[0];
  EXPECT_NE(errors[2].find("rank 1: it ended early"), std::string::npos) << errors[2];
}

TEST_F(Processes, OneMayLeaveBeforeTheOthers) {
  expect_success(3, [](ProcessGroup& group) {
    group.barrier();
    if (group.rank() == 0) return;
    std::this_thread::sleep_for(200ms);
    group.throw_if_failed();
  });
}

class FakeWork final : public Watched {
 public:
  std::string trouble() noexcept override { return {}; }
  void abandon() noexcept override { abandoned = true; }
  std::atomic<bool> abandoned = false;
};

// Forked before any thread of the test exists.
TEST_F(Processes, NoticeADeadProcess) {
  const pid_t child = fork();
  if (child == 0) {
    const ProcessGroup group(options(1, 2));
    _exit(0);  // without a goodbye, as when it is killed
  }
  FakeWork work;
  ProcessGroup group(options(0, 2));
  group.watch(&work);
  try {
    group.barrier();
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_NE(std::string(error.what()).find("rank 1: its process is gone"), std::string::npos)
        << error.what();
  }
  while (!work.abandoned) std::this_thread::sleep_for(1ms);
  group.watch(nullptr);
  waitpid(child, nullptr, 0);
}

// Each process begins steps at its own pace; whoever asks, all end before the same one, and none has begun
// more.
TEST_F(Processes, StopBeforeTheSameStep) {
  for (const int asking : {0, 2}) {
    std::vector<std::atomic<std::int64_t>> begun(3);
    expect_success(3, [&](ProcessGroup& group) {
      std::int64_t step = 0;
      while (group.admit(step, [&] { group.throw_if_failed(); })) {
        if (++step == 5 && group.rank() == asking) group.request_stop();
        std::this_thread::sleep_for(1ms * (1 + group.rank()));
      }
      begun[static_cast<std::size_t>(group.rank())] = step;
      EXPECT_TRUE(group.stopping());
      group.barrier();
    });
    EXPECT_GE(begun[0], 5);
    EXPECT_EQ(begun[1], begun[0]);
    EXPECT_EQ(begun[2], begun[0]);
  }
}

}  // namespace
}  // namespace pipeoptim::test
