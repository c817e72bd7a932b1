// bfloat16 without the library's own conversion.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/error.h"
#include "layers/provider.h"

namespace pipeoptim::test {

// The nearest value with 8 significant bits, ties to even. Not for values below 2^-126.
inline float nearest_bf16(float value) {
  int exponent = 0;
  const double mantissa = std::frexp(static_cast<double>(value), &exponent);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8));
}
inline std::vector<float> nearest_bf16(std::vector<float> values) {
  for (float& value : values) value = nearest_bf16(value);
  return values;
}
// What a factor is in a precision of the host.
inline std::vector<float> as_factor(const std::vector<float>& values, MatrixPrecision precision) {
  return precision == MatrixPrecision::kBf16 ? nearest_bf16(values) : values;
}

// Values as bf16: the upper halves of the nearest ones.
inline std::vector<Bf16> bf16_copy(const std::vector<float>& values) {
  std::vector<Bf16> copy;
  for (const float value : values) {
    const auto bits = std::bit_cast<std::uint32_t>(nearest_bf16(value));
    copy.push_back({static_cast<std::uint16_t>(bits >> 16)});
  }
  return copy;
}

// Whether a device multiplies in bf16: processors without AVX-512 do not.
inline bool multiplies_bf16(Device device) {
  try {
    make_linear(device, 1, {.rows = 1, .in = 1, .out = 1, .precision = MatrixPrecision::kBf16});
    return true;
  } catch (const DeviceError&) {
    return false;
  }
}

inline std::string precision_name(MatrixPrecision precision) {
  return matrix_precision_names().at(static_cast<std::size_t>(precision));
}

}  // namespace pipeoptim::test
