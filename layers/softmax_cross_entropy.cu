#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/softmax_cross_entropy.h"

namespace pipeoptim {
namespace {

struct Larger {
  PO_HD float operator()(float a, float b) const { return a > b ? a : b; }
};
struct Sum {
  template <typename T>
  PO_HD T operator()(T a, T b) const {
    return a + b;
  }
};
struct Smaller {
  PO_HD std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a < b ? a : b; }
};

#if defined(__CUDA_ARCH__)
constexpr int kLanes = 1;
#else
constexpr int kLanes = 16;  // columns that the host's vectorizer takes at once: two AVX2 registers
#endif

// e^x for x <= 0, NaN for NaN. The host's is a polynomial that vectorizes, where expf does not: x = n ln 2 +
// r, |r| <= ln 2 / 2, e^r by its Taylor series, 2^n by the exponent's bits. Within 1.1e-7 of e^x; 0 below
// e^-87.
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

// Calls body(column, lane) for the team's share of the columns.
template <typename Team, typename Body>
PO_HD void for_each_column(const Team& team, std::int32_t columns, const Body& body) {
  std::int32_t c = team.rank() * kLanes;
  for (; c + kLanes <= columns; c += team.size() * kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) body(c + lane, lane);
  }
  for (int lane = 0; c + lane < columns && lane < kLanes; ++lane) body(c + lane, lane);
}

// One value a lane, joined over the lanes and then the team.
template <typename T>
struct Lanes {
  T value[kLanes];

  PO_HD explicit Lanes(T first) {
    for (T& lane : value) lane = first;
  }
  template <typename Team, typename Op>
  PO_HD T reduce(const Team& team, Op op) const {
    T all = value[0];
    for (int lane = 1; lane < kLanes; ++lane) all = op(all, value[lane]);
    return team.reduce(all, op);
  }
};

// One row of logits: its loss, whether it is right, and its gradient.
struct SoftmaxRow {
  const float* logits;
  const std::int32_t* labels;
  float* gradient;  // may be null
  double* row_loss;
  std::int32_t* row_correct;
  std::int32_t classes;
  float smoothing;
  float scale;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const float* x = logits + row * classes;
    Lanes<float> highest(x[0]);
    for_each_column(team, classes, [&](std::int32_t c, int lane) {
      highest.value[lane] = x[c] > highest.value[lane] ? x[c] : highest.value[lane];
    });
    const float largest = highest.reduce(team, Larger{});

    Lanes<float> sums(0), totals(0);
    Lanes<std::int32_t> firsts(classes);
    for_each_column(team, classes, [&](std::int32_t c, int lane) {
      sums.value[lane] += exp_of(x[c] - largest);
      totals.value[lane] += x[c] - largest;
      const std::int32_t candidate = x[c] == largest ? c : classes;
      firsts.value[lane] = candidate < firsts.value[lane] ? candidate : firsts.value[lane];
    });
    const float sum = sums.reduce(team, Sum{});
    const float total = totals.reduce(team, Sum{});
    const std::int32_t first = firsts.reduce(team, Smaller{});

    const std::int32_t label = labels[row];
    const bool counts = label >= 0;
    if (team.rank() == 0) {
      // A label that is no class makes the loss NaN: seen at once, and nothing is read outside the row.
      const float hit = counts && label < classes ? x[label] - largest : nanf("");
      const double loss = static_cast<double>(logf(sum)) - static_cast<double>((1.0F - smoothing) * hit) -
                          static_cast<double>(smoothing / static_cast<float>(classes) * total);
      row_loss[row] = counts ? loss : 0.0;
      row_correct[row] = counts && first == label ? 1 : 0;
    }
    if (!gradient) return;
    float* dx = gradient + row * classes;
    const float inverse = 1.0F / sum;
    const float floor = smoothing / static_cast<float>(classes);
    for_each_column(team, classes, [&](std::int32_t c, int) {
      const float target = floor + (c == label ? 1.0F - smoothing : 0.0F);
      dx[c] = counts ? (exp_of(x[c] - largest) * inverse - target) * scale : 0.0F;
    });
  }
};

// The rows' results in a fixed order, so that the loss does not depend on the number of threads.
struct SumRows {
  const double* row_loss;
  const std::int32_t* row_correct;
  double* loss;
  std::int32_t* correct;
  std::int64_t rows;

  template <typename Team>
  PO_HD void operator()(std::int64_t, const Team& team) const {
    double sum = 0;
    std::int32_t hits = 0;
    for (std::int64_t row = team.rank(); row < rows; row += team.size()) {
      sum += row_loss[row];
      hits += row_correct[row];
    }
    sum = team.reduce(sum, Sum{});
    hits = team.reduce(hits, Sum{});
    if (team.rank() != 0) return;
    *loss = sum;
    *correct = hits;
  }
};

}  // namespace

SoftmaxCrossEntropy::SoftmaxCrossEntropy(double smoothing) : smoothing_(static_cast<float>(smoothing)) {
  if (!(smoothing >= 0 && smoothing < 1)) {
    throw std::invalid_argument("label smoothing must be in [0, 1), got " + std::to_string(smoothing));
  }
}

std::size_t SoftmaxCrossEntropy::workspace_bytes(const Shape& logits) const {
  const auto rows = static_cast<std::size_t>(logits[0]);
  return align_up(rows * sizeof(double)) + align_up(rows * sizeof(std::int32_t));
}

void SoftmaxCrossEntropy::run(const LossContext& context) const {
  const Shape& shape = context.logits.shape;
  if (shape.rank() != 2) {
    throw std::invalid_argument("softmax cross-entropy needs logits of shape records x classes, got " +
                                shape.to_string());
  }
  const std::int64_t rows = shape[0];
  auto* row_loss = reinterpret_cast<double*>(context.workspace);
  auto* row_correct = reinterpret_cast<std::int32_t*>(
      context.workspace + align_up(static_cast<std::size_t>(rows) * sizeof(double)));
  for_each_row(context.stream, rows, shape[1],
               SoftmaxRow{context.logits.data, context.labels, context.logits_gradient.data, row_loss,
                          row_correct, static_cast<std::int32_t>(shape[1]), smoothing_, context.scale});
  for_each_row(context.stream, 1, rows,
               SumRows{row_loss, row_correct, context.loss_sum, context.correct, rows});
}

}  // namespace pipeoptim
