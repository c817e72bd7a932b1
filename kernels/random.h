// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A number is a pure function of its
// key and counter, hence the same on every backend, schedule and thread count.
#pragma once

#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

// 32 random bits for element `element` of layer `layer` in mini-batch `minibatch`.
PO_HD std::uint32_t random_u32(std::uint64_t seed, std::uint64_t minibatch, std::uint64_t layer,
                               std::uint64_t element) {
  std::uint32_t counter[4] = {static_cast<std::uint32_t>(element), static_cast<std::uint32_t>(element >> 32),
                              static_cast<std::uint32_t>(minibatch),
                              static_cast<std::uint32_t>(layer) ^ static_cast<std::uint32_t>(minibatch >> 32)
                                                                      << 16};
  std::uint32_t key[2] = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57} * counter[2];
    const std::uint32_t next[4] = {
        static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(second),
        static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(first)};
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter[0];
}

}  // namespace pipeoptim
