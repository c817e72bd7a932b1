// bfloat16 against what its values are, on every backend.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/launch.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

class Bf16Contract : public BackendTest {
 protected:
  template <typename To, typename From, typename Body>
  std::vector<To> mapped(const std::vector<From>& values) const {
    const Buffer<From> from = on_device(values);
    const Buffer<To> to(device(), values.size());
    Stream stream(device());
    for_each(stream, static_cast<std::int64_t>(values.size()), Body{from.data(), to.data()});
    stream.synchronize();
    return on_host(to);
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, Bf16Contract, testing::ValuesIn(built_backends()), backend_name);

struct Round {
  const float* from;
  Bf16* to;
  PO_HD void operator()(std::int64_t i) const { to[i] = to_bf16(from[i]); }
};
struct Widen {
  const Bf16* from;
  float* to;
  PO_HD void operator()(std::int64_t i) const { to[i] = to_float(from[i]); }
};

constexpr std::uint32_t kMagnitude = 0x7FFF, kInfinity = 0x7F80;

// 8 bits of exponent and 7 of fraction; the value that follows the largest stands for infinity.
double magnitude(std::uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 7);
  const double fraction = (bits & 0x7F) / 128.0;
  return exponent == 0 ? std::ldexp(fraction, -126) : std::ldexp(1 + fraction, exponent - 127);
}

// Of the two neighbours of a value that is no NaN the nearer one, or the even one.
std::uint32_t nearest(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value) >> 16;
  const std::uint32_t sign = bits & 0x8000, below = bits & kMagnitude;
  if (std::isinf(value)) return sign | kInfinity;
  const double size = std::abs(static_cast<double>(value));
  const double down = size - magnitude(below), up = magnitude(below + 1) - size;
  return sign | (up < down || (up == down && below % 2 == 1) ? below + 1 : below);
}

TEST_P(Bf16Contract, RoundsToTheNearest) {
  std::vector<float> values;
  for (std::uint32_t upper = 0; upper <= 0xFFFF; ++upper) {
    for (const std::uint32_t lower : {0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF}) {
      values.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  const std::vector<Bf16> rounded = mapped<Bf16, float, Round>(values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]);
    if (std::isnan(values[i])) {
      ASSERT_GT(rounded[i].bits & kMagnitude, kInfinity) << std::hex << bits << " is no NaN any more";
      ASSERT_EQ(rounded[i].bits & 0x8000, bits >> 16 & 0x8000);
    } else {
      ASSERT_EQ(rounded[i].bits, nearest(values[i])) << std::hex << bits;
    }
  }
}

TEST_P(Bf16Contract, WidensExactly) {
  std::vector<Bf16> values;
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) values.push_back({static_cast<std::uint16_t>(bits)});
  const std::vector<float> wide = mapped<float, Bf16, Widen>(values);
  for (std::uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
    const std::uint32_t size = bits & kMagnitude;
    ASSERT_EQ(std::signbit(wide[bits]), bits > kMagnitude);
    if (size > kInfinity) {
      ASSERT_TRUE(std::isnan(wide[bits]));
    } else if (size == kInfinity) {
      ASSERT_TRUE(std::isinf(wide[bits]));
    } else {
      ASSERT_EQ(std::abs(static_cast<double>(wide[bits])), magnitude(size));
    }
  }
}

}  // namespace
}  // namespace pipeoptim::test
