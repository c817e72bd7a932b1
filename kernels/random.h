// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of its
// key and counter, hence the same on every backend, schedule and thread count.
#pragma once

#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

struct RandomBlock {
  std::uint32_t words[4];
};

// 128 random bits for group `group` of layer `layer` in mini-batch `minibatch`.
PO_HD RandomBlock random_block(std::uint64_t seed, std::uint64_t minibatch, std::uint64_t layer,
                               std::uint64_t group) {
  // Scalars, not an array: a loop over groups then becomes vector code on the host.
  auto a = static_cast<std::uint32_t>(group);
  auto b = static_cast<std::uint32_t>(group >> 32);
  auto c = static_cast<std::uint32_t>(minibatch);
  auto d = static_cast<std::uint32_t>(layer) ^ static_cast<std::uint32_t>(minibatch >> 32) << 16;
  auto key_low = static_cast<std::uint32_t>(seed);
  auto key_high = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53} * a;
    const std::uint64_t second = std::uint64_t{0xCD9E8D57} * c;
    a = static_cast<std::uint32_t>(second >> 32) ^ b ^ key_low;
    b = static_cast<std::uint32_t>(second);
    c = static_cast<std::uint32_t>(first >> 32) ^ d ^ key_high;
    d = static_cast<std::uint32_t>(first);
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  return {{a, b, c, d}};
}

// The first 32 of them: for numbers that are drawn one at a time.
PO_HD std::uint32_t random_u32(std::uint64_t seed, std::uint64_t minibatch, std::uint64_t layer,
                               std::uint64_t element) {
  return random_block(seed, minibatch, layer, element).words[0];
}

}  // namespace pipeoptim
