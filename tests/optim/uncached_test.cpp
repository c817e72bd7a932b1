// Arenas so large that the host writes their predictions past its caches: the bits of small ones.
#include "kernels/runtime/host/uncached.h"

#include <gtest/gtest.h>

#include <type_traits>

#include "tests/optim/optimizer_run.h"

namespace pipeoptim::test {
namespace {

// Elements of the first group, so that the chunks behind it begin at odd addresses, and those until the
// values behind it repeat.
constexpr std::int64_t kDecaying = 5, kPeriod = 4099;
// Elements that are enough.
template <typename Ahead>
constexpr std::int64_t kLarge = kDecaying + static_cast<std::int64_t>(host::kUncachedBytes / sizeof(Ahead)) +
                                1234;

OptimizerArena arena_of(std::int64_t elements, bool rounded) {
  return {.elements = elements,
          .groups = {{0, kDecaying, true}, {kDecaying, elements, false}},
          .rounded_elements = rounded ? elements : 0};
}

// Element i of any arena.
std::int64_t periodic(std::int64_t i) { return i < kDecaying ? i : kDecaying + (i - kDecaying) % kPeriod; }

// Predictions of two steps, as bits.
template <typename Ahead>
std::vector<Ahead> predictions(const OptimizerConfig& config, std::int64_t elements, int threads) {
  constexpr bool kRounded = std::is_same_v<Ahead, Bf16>;
  const auto optimizer = make_optimizer(Device::host(), config, arena_of(elements, kRounded));
  const std::vector<float> values = normal_values(kDecaying + kPeriod, 3);
  Buffer<float> weights(Device::host(), static_cast<std::size_t>(elements));
  Buffer<float> gradients(Device::host(), static_cast<std::size_t>(elements));
  for (std::int64_t i = 0; i < elements; ++i) {
    const auto from = static_cast<std::size_t>(periodic(i));
    weights.data()[i] = values[from];
    gradients.data()[i] = values[values.size() - 1 - from];
  }
  std::vector<Ahead> predicted(static_cast<std::size_t>(elements));
  PredictedWeights to{};
  if constexpr (kRounded) {
    to.rounded = predicted.data();
  } else {
    to.values = predicted.data();
  }
  Stream stream(Device::host(), {.threads = threads});
  const std::vector<float> rates{0.01F, 0.02F};
  for (int step = 0; step < 2; ++step) {
    optimizer->update_predict(stream, weights.data(), gradients.data(), 0.01F, to, rates);
  }
  stream.synchronize();
  return predicted;
}

template <typename Ahead>
void expect_periodic(const OptimizerConfig& config) {
  const std::vector<Ahead> small = predictions<Ahead>(config, kDecaying + kPeriod, 1);
  ASSERT_TRUE(host::leaves_caches(kLarge<Ahead>, sizeof(Ahead)));
  ASSERT_FALSE(host::leaves_caches(kDecaying + kPeriod, sizeof(Ahead)));
  const std::vector<Ahead> large = predictions<Ahead>(config, kLarge<Ahead>, 2);
  for (std::int64_t i = 0; i < kLarge<Ahead>; ++i) {
    const Ahead &one = large[static_cast<std::size_t>(i)],
                &other = small[static_cast<std::size_t>(periodic(i))];
    ASSERT_EQ(std::memcmp(&one, &other, sizeof(Ahead)), 0) << "element " << i;
  }
}

TEST(UncachedPredictions, AreThoseOfSmallArenas) {
  for (const Predictor predictor : {Predictor::kLinear, Predictor::kGeometric}) {
    OptimizerConfig config = lively_config("adamw");
    config.predictor = predictor;
    expect_periodic<float>(config);
    expect_periodic<Bf16>(config);
  }
}

TEST(CopyUncached, HandlesAnyAddressAndLength) {
  const std::vector<float> from = normal_values(300, 5);
  for (std::size_t offset = 0; offset < 40; offset += 3) {
    for (const std::size_t bytes : {0, 1, 15, 16, 17, 64, 1000}) {
      std::vector<std::byte> to(1100, std::byte{7});
      host::copy_uncached(to.data() + offset, from.data(), bytes);
      host::end_uncached();
      EXPECT_EQ(std::memcmp(to.data() + offset, from.data(), bytes), 0) << offset << ", " << bytes;
      EXPECT_EQ(std::count(to.begin(), to.begin() + static_cast<std::ptrdiff_t>(offset), std::byte{7}),
                static_cast<std::ptrdiff_t>(offset));
      const auto behind = to.begin() + static_cast<std::ptrdiff_t>(offset + bytes);
      EXPECT_EQ(std::count(behind, to.end(), std::byte{7}), to.end() - behind) << offset << ", " << bytes;
    }
  }
}

}  // namespace
}  // namespace pipeoptim::test
