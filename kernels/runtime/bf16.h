// bfloat16: the upper half of an fp32 value. Stored, and multiplied by tensor cores or the processor's own
// instructions; nothing else is computed in it.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

struct Bf16 {
  std::uint16_t bits = 0;
};

PO_HD float to_float(Bf16 value) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<std::uint32_t>(value.bits) << 16);
#else
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
#endif
}

// To the nearest value, ties to the one whose last bit is 0; a NaN stays one.
PO_HD Bf16 to_bf16(float value) {
#if defined(__CUDA_ARCH__)
  const std::uint32_t bits = __float_as_uint(value);
#else
  const auto bits = std::bit_cast<std::uint32_t>(value);
#endif
  const std::uint32_t nearest = (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16;
  const std::uint32_t quiet = (bits >> 16) | 0x40U;
  return {static_cast<std::uint16_t>((bits & 0x7FFFFFFFU) > 0x7F800000U ? quiet : nearest)};
}

}  // namespace pipeoptim
