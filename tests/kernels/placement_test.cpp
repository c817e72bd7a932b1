// Where the workers of host stages are put, on machines that are made up, and that a worker runs there.
#include "kernels/runtime/placement.h"

#include <gtest/gtest.h>
#include <omp.h>
#include <sched.h>

#include <string>
#include <vector>

#include "kernels/runtime/stream.h"

namespace pipeoptim::test {
namespace {

using Places = std::vector<std::vector<int>>;

// Domains of `each` cores of one processor.
std::vector<Core> plain_machine(int domains, int each) {
  std::vector<Core> cores;
  for (int i = 0; i < domains * each; ++i) cores.push_back({{i}, i / each});
  return cores;
}

Places place(const std::vector<Core>& cores, const std::vector<int>& threads) {
  return place_workers(cores, threads);
}

TEST(Placement, WorkersHaveConsecutiveCores) {
  EXPECT_EQ(place(plain_machine(1, 4), {2, 1, 1}), (Places{{0, 1}, {2}, {3}}));
}

TEST(Placement, AWorkerStaysInADomainWhereThereIsRoom) {
  EXPECT_EQ(place(plain_machine(2, 4), {3, 3}), (Places{{0, 1, 2}, {4, 5, 6}}));
  EXPECT_EQ(place(plain_machine(2, 4), {3, 2, 3}), (Places{{0, 1, 2}, {3, 4}, {5, 6, 7}}));  // no room
  EXPECT_EQ(place(plain_machine(2, 4), {6, 2}), (Places{{0, 1, 2, 3, 4, 5}, {6, 7}}));       // fits into none
}

TEST(Placement, TooFewCoresAreNotDivided) {
  EXPECT_EQ(place(plain_machine(1, 2), {1, 1, 1}), Places{});
  EXPECT_EQ(place({}, {1}), Places{});
}

TEST(Placement, ACoreIsOneWorkersUnlessTheyAreTooFew) {
  const std::vector<Core> cores = {{{0, 2}, 0}, {{1, 3}, 0}};
  EXPECT_EQ(place(cores, {1, 1}), (Places{{0, 2}, {1, 3}}));
  EXPECT_EQ(place(cores, {2, 1}), (Places{{0, 2}, {1}}));
  EXPECT_EQ(place(cores, {3, 2}), Places{});
}

TEST(Placement, ReadsMachines) {
  if (placement_library().empty()) GTEST_SKIP() << "built without hwloc";
  const std::vector<Core> nodes = synthetic_cores("pack:2 numa:1 core:4 pu:2");
  ASSERT_EQ(nodes.size(), 8U);
  EXPECT_EQ(nodes[5].processors, (std::vector{10, 11}));
  EXPECT_EQ(place(nodes, {3, 4}), (Places{{0, 1, 2, 3, 4, 5}, {8, 9, 10, 11, 12, 13, 14, 15}}));
  const std::vector<Core> caches = synthetic_cores("pack:1 l3:2 core:2 pu:1");
  EXPECT_EQ(caches[1].domain, caches[0].domain);
  EXPECT_NE(caches[2].domain, caches[1].domain);
  EXPECT_THROW(synthetic_cores("no machine"), std::invalid_argument);
}

TEST(Placement, TheMachineHasWhatTheProcessMayUse) {
  if (placement_library().empty()) GTEST_SKIP() << "built without hwloc";
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  int processors = 0;
  for (const Core& core : usable_machine_cores()) {
    for (const int processor : core.processors) {
      EXPECT_TRUE(CPU_ISSET(static_cast<std::size_t>(processor), &allowed)) << processor;
      ++processors;
    }
  }
  EXPECT_EQ(processors, CPU_COUNT(&allowed));
}

TEST(Placement, AWorkerAndItsTeamRunWhereTheyWerePut) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(static_cast<std::size_t>(last), &allowed)) --last;
  Stream stream(Device::host(), {.threads = 2, .processors = {last}});
  cpu_set_t seen[2];
  CPU_ZERO(&seen[0]);
  CPU_ZERO(&seen[1]);
  stream.submit([to = &seen[0]] {
#pragma omp parallel num_threads(2)
    sched_getaffinity(0, sizeof(cpu_set_t), &to[omp_get_thread_num()]);
  });
  stream.synchronize();
  EXPECT_EQ(CPU_COUNT(&seen[0]), 1);
  EXPECT_TRUE(CPU_ISSET(static_cast<std::size_t>(last), &seen[0]));
  EXPECT_TRUE(CPU_COUNT(&seen[1]) == 0 || CPU_EQUAL(&seen[0], &seen[1]));  // there may be no second thread
  cpu_set_t after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&allowed, &after)) << "the caller was bound, too";
}

}  // namespace
}  // namespace pipeoptim::test
