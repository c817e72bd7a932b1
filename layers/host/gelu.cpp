#include "layers/host/gelu.h"

#include <cmath>
#include <numbers>

#include "kernels/runtime/host/launch_host.h"
#include "layers/host/factors.h"

namespace pipeoptim::host {

#if defined(__x86_64__)

namespace {

// For a >= 0 a function that falls to nothing, by polynomials in a / kWidth - i around each a = i kWidth. A
// vector's lanes find theirs by a permutation of two registers, which hold 32.
constexpr int kPieces = 32, kDegree = 3;
constexpr double kWidth = 0.1875;
constexpr float kEnd = static_cast<float>(kWidth * (kPieces - 1));  // behind it the function is the one there

struct Pieces {
  alignas(64) float coefficients[kDegree + 1][kPieces];  // from the highest power on
};

// Polynomials that meet the function at Chebyshev's nodes, by divided differences.
template <typename Function>
Pieces make_pieces(const Function& function) {
  Pieces pieces{};
  for (int piece = 0; piece < kPieces; ++piece) {
    double nodes[kDegree + 1], differences[kDegree + 1];
    for (int i = 0; i <= kDegree; ++i) {
      nodes[i] = 0.5 * std::cos(std::numbers::pi * (2 * i + 1) / (2 * kDegree + 2));
      differences[i] = function(kWidth * (piece + nodes[i]));
    }
    for (int order = 1; order <= kDegree; ++order) {
      for (int i = kDegree; i >= order; --i) {
        differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - order]);
      }
    }
    double powers[kDegree + 1] = {differences[kDegree]};  // from the lowest one on
    for (int i = kDegree - 1; i >= 0; --i) {              // times (a - node), plus the difference
      for (int power = kDegree; power >= 1; --power)
        powers[power] = powers[power - 1] - nodes[i] * powers[power];
      powers[0] = differences[i] - nodes[i] * powers[0];
    }
    for (int power = 0; power <= kDegree; ++power) {
      pieces.coefficients[kDegree - power][piece] = static_cast<float>(powers[power]);
    }
  }
  return pieces;
}

double cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi); }

// Phi(-a), and the slope of x Phi(x) at -a.
const Pieces& cdf_below() {
  static const Pieces pieces = make_pieces([](double a) { return cdf(-a); });
  return pieces;
}
const Pieces& slope_below() {
  static const Pieces pieces = make_pieces([](double a) { return cdf(-a) - a * density(a); });
  return pieces;
}

PO_BF16_PAIRS inline __m512 load(const Bf16* values) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

// The lesser of |x| and kEnd; NaN for NaN.
PO_BF16_PAIRS inline __m512 bounded_size(__m512 x) {
  return _mm512_min_ps(_mm512_set1_ps(kEnd), _mm512_abs_ps(x));  // the second one where one is NaN
}

// The function at a, which is NaN or no more than kEnd. The sum with 1.5 * 2^23 has the nearest piece in its
// lowest bits.
PO_BF16_PAIRS inline __m512 value_at(const Pieces& pieces, __m512 a) {
  const __m512 shift = _mm512_set1_ps(12582912.0F), scale = _mm512_set1_ps(static_cast<float>(1 / kWidth));
  const __m512 shifted = _mm512_fmadd_ps(a, scale, shift);
  const __m512i piece = _mm512_castps_si512(shifted);
  const __m512 r = _mm512_fmsub_ps(a, scale, _mm512_sub_ps(shifted, shift));
  const auto coefficient = [&](int index) PO_BF16_PAIRS {
    const float* const from = pieces.coefficients[index];
    return _mm512_permutex2var_ps(_mm512_load_ps(from), piece, _mm512_load_ps(from + kLanes));
  };
  __m512 value = coefficient(0);
#pragma GCC unroll 4
  for (int i = 1; i <= kDegree; ++i) value = _mm512_fmadd_ps(value, r, coefficient(i));
  return value;
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|).
struct Value {
  const Bf16* x;
  Bf16* y;

  PO_BF16_PAIRS void run(std::int64_t begin, std::int64_t end) const {
    const Pieces& pieces = cdf_below();
    for (std::int64_t i = begin; i < end; i += kLanes) {
      const __m512 v = load(x + i), a = bounded_size(v);
      const __m512 above = _mm512_max_ps(v, _mm512_setzero_ps());
      Bf16Factors::store(y + i, _mm512_fnmadd_ps(a, value_at(pieces, a), above));
    }
  }
};

// The slope at -x is one less that at x.
struct Slope {
  const Bf16 *x, *dy;
  Bf16* dx;

  PO_BF16_PAIRS void run(std::int64_t begin, std::int64_t end) const {
    const Pieces& pieces = slope_below();
    for (std::int64_t i = begin; i < end; i += kLanes) {
      const __m512 v = load(x + i), below = value_at(pieces, bounded_size(v));
      const __mmask16 above = _mm512_movepi32_mask(_mm512_castps_si512(v)) ^ 0xFFFF;
      const __m512 slope = _mm512_mask_sub_ps(below, above, _mm512_set1_ps(1.0F), below);
      Bf16Factors::store(dx + i, _mm512_mul_ps(load(dy + i), slope));
    }
  }
};

template <typename Body>
void for_each_vector(Stream& stream, std::int64_t count, const Body& body) {
  const int threads = count < kSerialElements ? 1 : stream.threads();
  stream.submit([count, threads, body] {
    for_shares(threads, count, [&](std::int64_t begin, std::int64_t end) { body.run(begin, end); });
  });
}

}  // namespace

bool handles_gelu(std::int64_t count) { return multiplies_bf16_pairs() && count % kLanes == 0; }

void gelu(Stream& stream, std::int64_t count, const Bf16* x, Bf16* y) {
  for_each_vector(stream, count, Value{x, y});
}

void gelu_gradient(Stream& stream, std::int64_t count, const Bf16* x, const Bf16* dy, Bf16* dx) {
  for_each_vector(stream, count, Slope{x, dy, dx});
}

#else

bool handles_gelu(std::int64_t) { return false; }
void gelu(Stream&, std::int64_t, const Bf16*, Bf16*) {}
void gelu_gradient(Stream&, std::int64_t, const Bf16*, const Bf16*, Bf16*) {}

#endif

}  // namespace pipeoptim::host
