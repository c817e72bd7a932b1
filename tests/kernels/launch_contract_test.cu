// What the two launches promise, on every backend: each element once, each row once, teams that reduce.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

using LaunchContract = BackendTest;

INSTANTIATE_TEST_SUITE_P(Backends, LaunchContract, testing::ValuesIn(built_backends()), backend_name);

constexpr std::int64_t kSizes[] = {0, 1, 3, 31, 8191, 8192, 100003};

struct CountVisits {
  std::int32_t* visits;
  PO_HD void operator()(std::int64_t i) const { visits[i] += static_cast<std::int32_t>(i % 5) + 1; }
};

TEST_P(LaunchContract, ForEachVisitsEachElementOnce) {
  for (const int threads : {1, 3}) {
    for (const std::int64_t n : kSizes) {
      const Buffer<std::int32_t> visits(device(), static_cast<std::size_t>(n + 8));
      Stream stream(device(), {.threads = threads});
      for_each(stream, n, CountVisits{visits.data()});
      stream.synchronize();
      const std::vector<std::int32_t> seen = on_host(visits);
      for (std::int64_t i = 0; i < n + 8; ++i) {
        ASSERT_EQ(seen[static_cast<std::size_t>(i)], i < n ? i % 5 + 1 : 0) << i << " of " << n;
      }
    }
  }
}

// Counts what a pack covers: one more each time that an element is visited, 100 more in a pack of four.
struct AddInPacks {
  static constexpr int kWidth = 4;
  const float* from;
  float* to;

  template <int kPack>
  PO_HD void at(std::int64_t i) const {
    const Pack<kPack> read = load_pack<kPack>(from + i);
    Pack<kPack> sum = load_pack<kPack>(to + i);
    for (int lane = 0; lane < kPack; ++lane)
      sum.value[lane] += read.value[lane] + (kPack == 4 ? 100.0F : 0.0F);
    store_pack(to + i, sum);
  }
  PO_HD void operator()(std::int64_t i) const { at<1>(i); }
  bool packs() const { return allow_packs(from, to); }
};

TEST_P(LaunchContract, ForEachInPacksVisitsEachElementOnce) {
  for (const std::int64_t offset : {0, 1}) {
    for (const std::int64_t n : kSizes) {
      const Buffer<float> from = on_device(std::vector<float>(static_cast<std::size_t>(n + 8), 1.0F));
      const Buffer<float> to(device(), static_cast<std::size_t>(n + 8));
      Stream stream(device());
      for_each(stream, n, AddInPacks{from.data() + offset, to.data() + offset});
      stream.synchronize();
      const bool packed = GetParam() == Backend::kCuda && offset == 0;
      const std::vector<float> seen = on_host(to);
      for (std::int64_t i = 0; i < n + 8 - offset; ++i) {
        const float in_pack = packed && i < n / 4 * 4 ? 101.0F : 1.0F;
        ASSERT_EQ(seen[static_cast<std::size_t>(i + offset)], i < n ? in_pack : 0) << i << " of " << n;
      }
    }
  }
}

struct Sum {
  template <typename T>
  PO_HD T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <typename T>
  PO_HD T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Two sums of different types and a maximum, one after the other; every member then writes what it got.
struct RowStatistics {
  const float* x;
  double* sum;
  std::int64_t* count;
  float* centred;
  std::int64_t length;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const float* from = x + row * length;
    double total = 0;
    std::int64_t seen = 0;
    float largest = from[0];
    for (std::int64_t i = team.rank(); i < length; i += team.size()) {
      total += static_cast<double>(from[i]);
      ++seen;
      largest = Larger{}(largest, from[i]);
    }
    total = team.reduce(total, Sum{});
    seen = team.reduce(seen, Sum{});
    largest = team.reduce(largest, Larger{});
    if (team.rank() == 0) {
      sum[row] = total;
      count[row] += seen;
    }
    const double again = team.reduce(team.rank() == 0 ? total : 0.0, Sum{});
    for (std::int64_t i = team.rank(); i < length; i += team.size()) {
      centred[row * length + i] = again == total ? from[i] - largest : NAN;
    }
  }
};

void check_rows(Device device, std::int64_t rows, std::int64_t length, const std::vector<float>& x,
                Stream& stream) {
  Buffer<float> from(device, x.size());
  copy_from_host(from.data(), x.data(), x.size() * sizeof(float), device);
  const Buffer<double> sum(device, static_cast<std::size_t>(rows));
  const Buffer<std::int64_t> count(device, static_cast<std::size_t>(rows));
  const Buffer<float> centred(device, x.size());
  for_each_row(stream, rows, length,
               RowStatistics{from.data(), sum.data(), count.data(), centred.data(), length});
  stream.synchronize();
  std::vector<double> sums(sum.size());
  std::vector<std::int64_t> counts(count.size());
  std::vector<float> differences(x.size());
  copy_to_host(sums.data(), sum.data(), sums.size() * sizeof(double), device);
  copy_to_host(counts.data(), count.data(), counts.size() * sizeof(std::int64_t), device);
  copy_to_host(differences.data(), centred.data(), differences.size() * sizeof(float), device);

  for (std::int64_t row = 0; row < rows; ++row) {
    double expected = 0;
    double magnitude = 0;
    float largest = x[static_cast<std::size_t>(row * length)];
    for (std::int64_t i = 0; i < length; ++i) {
      const float value = x[static_cast<std::size_t>(row * length + i)];
      expected += static_cast<double>(value);
      magnitude += std::fabs(static_cast<double>(value));
      largest = value > largest ? value : largest;
    }
    // Any order of n additions in double is off by at most n half ulps of the sum of magnitudes.
    const double tolerance = static_cast<double>(length) * 0x1p-53 * magnitude;
    ASSERT_NEAR(sums[static_cast<std::size_t>(row)], expected, tolerance) << "row " << row;
    ASSERT_EQ(counts[static_cast<std::size_t>(row)], length) << "row " << row;
    for (std::int64_t i = row * length; i < (row + 1) * length; ++i) {
      ASSERT_EQ(differences[static_cast<std::size_t>(i)], x[static_cast<std::size_t>(i)] - largest) << i;
    }
  }
}

TEST_P(LaunchContract, ForEachRowReducesShortAndLongRows) {
  for (const int threads : {1, 3}) {
    Stream stream(device(), {.threads = threads});
    for (const std::int64_t rows : {1, 7, 65}) {
      for (const std::int64_t length : {1, 10, 32, 33, 511, 512, 1000, 8192}) {
        std::vector<float> x(static_cast<std::size_t>(rows * length));
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i) * 0.7F);
        check_rows(device(), rows, length, x, stream);
        if (testing::Test::HasFatalFailure()) FAIL() << rows << " rows of " << length;
      }
    }
  }
}

TEST_P(LaunchContract, NoRowsAreNoWork) {
  Stream stream(device());
  for_each_row(stream, 0, 1000, RowStatistics{});
  for_each(stream, 0, CountVisits{});
  stream.synchronize();
}

// Indexes an array that lies in the body itself.
struct Lookup {
  std::int32_t table[16];
  std::int32_t* to;
  PO_HD void operator()(std::int64_t i) const { to[i] = table[(7 * i) % 16]; }
};

TEST_P(LaunchContract, BodiesArePassedByValue) {
  const Buffer<std::int32_t> to(device(), 64);
  Stream stream(device());
  {
    Lookup body{{}, to.data()};
    for (int i = 0; i < 16; ++i) body.table[i] = i * i;
    for_each(stream, 64, body);
    for (std::int32_t& entry : body.table) entry = -1;
  }
  stream.synchronize();
  const std::vector<std::int32_t> seen = on_host(to);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(seen[static_cast<std::size_t>(i)], (7 * i % 16) * (7 * i % 16));
}

struct Add {
  const float* from;
  float* to;
  PO_HD void operator()(std::int64_t i) const { to[i] = from[i] + 1; }
};

TEST_P(LaunchContract, LaunchesAreOrderedAcrossStreams) {
  constexpr std::int64_t n = 20000;
  const Buffer<float> first(device(), n);
  const Buffer<float> second(device(), n);
  Stream there(device());
  Stream back(device());
  Event written(device());
  Event consumed(device());
  for (int round = 0; round < 20; ++round) {
    there.wait(consumed);
    for_each(there, n, Add{first.data(), second.data()});
    there.record(written);
    back.wait(written);
    for_each(back, n, Add{second.data(), first.data()});
    back.record(consumed);
  }
  back.synchronize();
  EXPECT_EQ(on_host(first), std::vector<float>(n, 40.0F));
}

}  // namespace
}  // namespace pipeoptim::test
