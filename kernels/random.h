// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of its
// key and counter, hence the same on every backend, schedule and thread count.
#pragma once

#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

struct RandomBlock {
  std::uint32_t words[4];
};

namespace detail {

// The host multiplies words as 64-bit numbers, which is what its compiler makes vector code of.
#if defined(__CUDA_ARCH__)
using PhiloxWord = std::uint32_t;
#else
using PhiloxWord = std::uint64_t;
#endif

struct Philox {
  PhiloxWord a, b, c, d;  // below 2^32
  std::uint32_t key_low, key_high;

  PO_HD void round() {
    const std::uint64_t first = std::uint64_t{0xD2511F53} * a;
    const std::uint64_t second = std::uint64_t{0xCD9E8D57} * c;
    a = static_cast<PhiloxWord>(second >> 32) ^ b ^ key_low;
    b = static_cast<std::uint32_t>(second);
    c = static_cast<PhiloxWord>(first >> 32) ^ d ^ key_high;
    d = static_cast<std::uint32_t>(first);
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  // Not a loop: a loop over groups then becomes vector code on the host.
  template <int kRounds>
  PO_HD void rounds() {
    if constexpr (kRounds > 0) {
      round();
      rounds<kRounds - 1>();
    }
  }
};

}  // namespace detail

// 128 random bits for group `group` of layer `layer` in mini-batch `minibatch`.
PO_HD RandomBlock random_block(std::uint64_t seed, std::uint64_t minibatch, std::uint64_t layer,
                               std::uint64_t group) {
  const auto low = [](std::uint64_t x) PO_INLINED { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) PO_INLINED { return static_cast<std::uint32_t>(x >> 32); };
  detail::Philox state{.a = low(group),
                       .b = high(group),
                       .c = low(minibatch),
                       .d = low(layer) ^ high(minibatch) << 16,
                       .key_low = low(seed),
                       .key_high = high(seed)};
  state.rounds<10>();
  return {{low(state.a), low(state.b), low(state.c), low(state.d)}};
}

// The first 32 of them: for numbers that are drawn one at a time.
PO_HD std::uint32_t random_u32(std::uint64_t seed, std::uint64_t minibatch, std::uint64_t layer,
                               std::uint64_t element) {
  return random_block(seed, minibatch, layer, element).words[0];
}

}  // namespace pipeoptim
