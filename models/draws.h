// The counted random numbers of data and first values: which number is drawn for what.
#pragma once

#include <cstdint>

#include "kernels/random.h"

namespace pipeoptim {

enum class Purpose : std::uint64_t { kShuffle = 1, kAugment, kSynthetic, kInitialize };

// 32 even bits, a function of the arguments alone.
inline std::uint32_t draw(std::uint64_t seed, Purpose purpose, std::uint64_t group, std::uint64_t element) {
  constexpr std::uint64_t kAboveAllLayers = 0xffffff00U;  // dropout's numbers are counted by layer
  return random_u32(seed, group, kAboveAllLayers + static_cast<std::uint64_t>(purpose), element);
}

// From even bits to [0, bound), as even as 32 bits can.
inline std::uint32_t bounded(std::uint32_t bits, std::uint32_t bound) {
  return static_cast<std::uint32_t>(std::uint64_t{bits} * bound >> 32);
}

}  // namespace pipeoptim
