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

#if !defined(__CUDA_ARCH__)
// 1/2 + x P(x^2) / Q(x^2) from -end to end, the coefficients from the lowest power on; 0 and 1 beyond.
template <int kP, int kQ>
PO_HD float rise(float x, float end, const float (&p)[kP], const float (&q)[kQ]) {
  const float square = x * x;
  float over = p[kP - 1], under = q[kQ - 1];
  for (int i = kP - 2; i >= 0; --i) over = over * square + p[i];
  for (int i = kQ - 2; i >= 0; --i) under = under * square + q[i];
  const float inside = 0.5F + x * over / under;
  const float above = x > end ? 1.0F : inside;
  return x < -end ? 0.0F : above;
}
#endif

// The normal distribution's Phi(x). The host's is within 2.5e-7 of it, which is all that is left of it far
// below 0, and 0 or 1 from 5.3 on (a minimax quotient for Phi - 1/2 up to there).
PO_HD float normal_cdf(float x) {
#if defined(__CUDA_ARCH__)
  return normcdff(x);
#else
  constexpr float kP[] = {0.398942245F,    0.0333722625F,   0.00465085344F,
                          0.000164322062F, 6.36002447e-06F, 2.33867242e-08F};
  constexpr float kQ[] = {1.0F,           0.250317946F,    0.0283787073F,
                          0.00185898357F, 7.24003128e-05F, 1.21659101e-06F};
  return rise(x, 5.3F, kP, kQ);
#endif
}

// The slope of x Phi(x), Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi). The host's is within 2.6e-7, and 0 or 1 from
// 5.8 on, as above.
PO_HD float gelu_slope(float x) {
#if defined(__CUDA_ARCH__)
  constexpr float kDensityAtZero = 0.39894228040143268F;  // 1 / sqrt(2 pi)
  return normcdff(x) + x * kDensityAtZero * expf(-0.5F * x * x);
#else
  constexpr float kP[] = {0.797884715F,    -0.0437150034F,   0.0146087501F,   -0.000184040593F,
                          3.26722082e-05F, -1.59674995e-07F, 3.39837486e-09F, -1.89449517e-11F};
  constexpr float kQ[] = {1.0F, 0.278546382F, 0.036153915F, 0.00283933117F, 0.000141900934F, 4.9576426e-06F};
  return rise(x, 5.8F, kP, kQ);
#endif
}

}  // namespace pipeoptim
