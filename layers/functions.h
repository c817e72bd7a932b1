// Elementary functions for kernel bodies. On CUDA they are the library's; the host's are polynomials, with
// selections in place of branches, so that loops over them become vector code (the C library's functions do
// not).
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include functions.h only from .cu files"
#endif

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/runtime/macros.h"

namespace pipeoptim {

// e^x for x <= 0, NaN for NaN. x = n ln 2 + r, |r| <= ln 2 / 2, e^r by its Taylor series, 2^n by the
// exponent's bits. Within 1.1e-7 of e^x; 0 below e^-87.
PO_HD float exp_of(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const float bounded = x < -87.0F ? -87.0F : x;
  const float shifted = bounded * 1.44269504F + kShift;
  const float n = shifted - kShift;
  const float r =
      (bounded - n * 0.693359375F) + n * 2.12194440e-4F;  // ln 2 in two parts: the first product is exact
  float e = 1.0F / 5040;
  e = e * r + 1.0F / 720;
  e = e * r + 1.0F / 120;
  e = e * r + 1.0F / 24;
  e = e * r + 1.0F / 6;
  e = e * r + 0.5F;
  e = e * r + 1.0F;
  e = e * r + 1.0F;
  const auto bits = (std::bit_cast<std::uint32_t>(shifted) + 127U) << 23;
  return x < -87.0F ? 0.0F : e * std::bit_cast<float>(bits);
#endif
}

PO_HD float magnitude_of(float x) { return x < 0 ? -x : x; }

// 1 / (1 + e^-x), relative error 2e-7.
PO_HD float sigmoid_of(float x) {
#if defined(__CUDA_ARCH__)
  return 1.0F / (1.0F + expf(-x));
#else
  const float e = exp_of(-magnitude_of(x));
  return (x < 0 ? e : 1.0F) / (1.0F + e);
#endif
}

// Relative error 2e-7. Near 0 an odd polynomial (minimax in x^2 on [0, 0.49]), where 1 - e^-2x would lose
// digits.
PO_HD float tanh_of(float x) {
#if defined(__CUDA_ARCH__)
  return tanhf(x);
#else
  const float size = magnitude_of(x), square = x * x;
  const float e = exp_of(-2.0F * size);
  const float far = (1.0F - e) / (1.0F + e);
  float near = -0.0051551047F;
  near = near * square + 0.0201116465F;
  near = near * square - 0.0535669848F;
  near = near * square + 0.133292437F;
  near = near * square - 0.333331972F;
  near = near * square * x + x;
  const float signed_far = x < 0 ? -far : far;
  return size < 0.7F ? near : signed_far;
#endif
}

// The normal distribution's Phi(x), within 2.1e-7, below 0 with a relative error of 3e-6 down to -4. `decay`
// is exp_of(-x^2 / 2), which callers need as well: the host multiplies it by a polynomial for the rest of the
// tail, in t = 1 / (1 + 0.3 |x|) (minimax, weighted by the decay).
PO_HD float normal_cdf(float x, float decay) {
#if defined(__CUDA_ARCH__)
  static_cast<void>(decay);
  return normcdff(x);
#else
  const float t = 1.0F / (1.0F + 0.3F * magnitude_of(x));
  float tail = 0.0517859608F;
  tail = tail * t - 0.324080646F;
  tail = tail * t + 0.708526850F;
  tail = tail * t - 0.550064147F;
  tail = tail * t + 0.483528286F;
  tail = tail * t - 0.0137965055F;
  tail = tail * t + 0.146420181F;
  tail = tail * t - 0.00231997087F;
  tail *= decay;
  return x < 0 ? tail : 1.0F - tail;
#endif
}

}  // namespace pipeoptim
