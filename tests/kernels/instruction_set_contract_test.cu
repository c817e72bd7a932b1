// Every version of a host loop that this processor can run gives the same bits.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/random.h"
#include "kernels/runtime/bf16.h"
#include "kernels/runtime/instruction_set.h"
#include "kernels/runtime/launch.h"

namespace pipeoptim::test {
namespace {

// Products to add, which must not be contracted, a root, a quotient, a selection, and both casts.
struct Arithmetic {
  const float* x;
  float* y;
  Bf16* rounded;
  PO_HD void operator()(std::int64_t i) const {
    const float value = x[i] * 1.0000001F + x[i] * x[i];
    const float root = sqrtf(value < 0 ? -value : value) + 1e-8F;
    y[i] = value / root - 3.0F * value;
    rounded[i] = to_bf16(y[i]);
  }
};

struct Draw {
  float* y;
  PO_HD void operator()(std::int64_t i) const {
    const std::uint32_t bits = random_u32(7, 3, 1, static_cast<std::uint64_t>(i));
    y[i] = static_cast<float>(bits >> 8) * 0x1p-24F;
  }
};

// Sums of a row in lanes of a fixed number, and in order.
struct SumsOfRow {
  static constexpr int kLanes = 16;
  const float* x;
  float* y;
  std::int64_t length;
  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team&) const {
    const float* const from = x + row * length;
    float lanes[kLanes] = {};
    for (std::int64_t i = 0; i + kLanes <= length; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += from[i + lane] * from[i + lane];
    }
    float ordered = 0;
    for (std::int64_t i = 0; i < length; ++i) ordered += from[i] * 0.7F;
    for (const float lane : lanes) ordered += lane;
    y[row] = ordered;
  }
};

struct Results {
  std::vector<float> values;
  std::vector<std::uint16_t> rounded;
  std::vector<float> draws, sums;
};

Results results(InstructionSet set, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kLength = 100;
  const auto size = static_cast<std::size_t>(end);
  std::vector<float> x(size);
  for (std::size_t i = 0; i < size; ++i) x[i] = std::sin(static_cast<float>(i) * 0.7F) * 1e3F;
  std::vector<Bf16> rounded(size);
  Results all{std::vector<float>(size), {}, std::vector<float>(size), std::vector<float>(size / kLength)};
  host::run_range(set, Arithmetic{x.data(), all.values.data(), rounded.data()}, begin, end);
  host::run_range(set, Draw{all.draws.data()}, begin, end);
  host::run_rows(set, SumsOfRow{x.data(), all.sums.data(), kLength}, 0, end / kLength);
  for (const Bf16 value : rounded) all.rounded.push_back(value.bits);
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST(InstructionSetContract, EveryVersionGivesTheSameBits) {
  for (const std::int64_t begin : {0, 1, 17}) {
    for (const std::int64_t end : {17, 31, 64, 1003}) {
      const Results expected = results(InstructionSet::kBaseline, begin, end);
      for (const InstructionSet set : usable_instruction_sets()) {
        const Results seen = results(set, begin, end);
        EXPECT_TRUE(same_bits(seen.values, expected.values)) << to_string(set);
        EXPECT_EQ(seen.rounded, expected.rounded) << to_string(set);
        EXPECT_TRUE(same_bits(seen.draws, expected.draws)) << to_string(set);
        EXPECT_TRUE(same_bits(seen.sums, expected.sums)) << to_string(set);
      }
    }
  }
}

TEST(InstructionSetContract, TheBaselineIsAlwaysThere) {
  const std::vector<InstructionSet> sets = usable_instruction_sets();
  ASSERT_FALSE(sets.empty());
  EXPECT_EQ(sets.front(), InstructionSet::kBaseline);
}

}  // namespace
}  // namespace pipeoptim::test
