#include "models/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

// The cheapest maximum over all ways to cut, by trying them.
double best_maximum(const std::vector<double>& costs, std::size_t first, int stages) {
  double sum = 0, best = HUGE_VAL;
  if (stages == 1) {
    for (std::size_t i = first; i < costs.size(); ++i) sum += costs[i];
    return sum;
  }
  for (std::size_t end = first + 1; end + static_cast<std::size_t>(stages) - 1 <= costs.size(); ++end) {
    sum += costs[end - 1];
    best = std::min(best, std::max(sum, best_maximum(costs, end, stages - 1)));
  }
  return best;
}

TEST(Partition, IsAsGoodAsTryingAll) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<double> costs(1 + random() % 11);
    for (double& cost : costs) cost = static_cast<double>(random() % 20);  // whole numbers, so sums are exact
    const int stages = 1 + static_cast<int>(random() % costs.size());
    const Cuts cuts = balanced_cuts(costs, stages);
    ASSERT_EQ(static_cast<int>(cuts.size()), stages - 1);
    std::size_t begin = 0;
    double maximum = 0;
    for (std::size_t s = 0; s <= cuts.size(); ++s) {
      const std::size_t end = s < cuts.size() ? cuts[s] : costs.size();
      ASSERT_LT(begin, end);
      double sum = 0;
      for (; begin < end; ++begin) sum += costs[begin];
      maximum = std::max(maximum, sum);
    }
    EXPECT_EQ(maximum, best_maximum(costs, 0, stages));
  }
}

// The largest layer fixes the maximum; the rest is still split evenly.
TEST(Partition, SpreadsWhatIsLeft) {
  const std::vector<double> costs{100, 1, 1, 1, 1};
  EXPECT_EQ(balanced_cuts(costs, 3), (Cuts{1, 3}));
}

TEST(Partition, RejectsMoreStagesThanLayers) {
  const std::vector<double> costs{1, 2, 3};
  expect_mentions(message_of<std::invalid_argument>([&] { balanced_cuts(costs, 5); }),
                  {"5 stages", "3 layers"});
  EXPECT_THROW(balanced_cuts(costs, 0), std::invalid_argument);
}

TEST(Partition, ChecksCuts) {
  const auto checked = [](std::vector<int> cuts) { return checked_cuts(cuts, 10); };
  EXPECT_EQ(checked({3, 6, 8}), (Cuts{3, 6, 8}));
  EXPECT_EQ(checked({}), Cuts{});
  const auto error = [&](std::vector<int> cuts) {
    return message_of<std::invalid_argument>([&] { checked(cuts); });
  };
  expect_mentions(error({3, 3}), {"cut 3 does not come after 3"});
  expect_mentions(error({6, 3}), {"cut 3 does not come after 6"});
  expect_mentions(error({3, 10}), {"cut 10", "between 1 and 9"});
  expect_mentions(error({0, 3}), {"cut 0", "between 1 and 9"});
  expect_mentions(error({-1}), {"cut -1", "between 1 and 9"});
}

}  // namespace
}  // namespace pipeoptim::test
