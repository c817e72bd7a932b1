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
    float largest = x[0];
    for (std::int32_t c = team.rank(); c < classes; c += team.size())
      largest = x[c] > largest ? x[c] : largest;
    largest = team.reduce(largest, Larger{});
    float sum = 0;
    float total = 0;
    std::int32_t first = classes;
    for (std::int32_t c = team.rank(); c < classes; c += team.size()) {
      sum += expf(x[c] - largest);
      total += x[c] - largest;
      if (x[c] == largest && c < first) first = c;
    }
    sum = team.reduce(sum, Sum{});
    total = team.reduce(total, Sum{});
    first = team.reduce(first, Smaller{});
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
    for (std::int32_t c = team.rank(); c < classes; c += team.size()) {
      const float target = floor + (c == label ? 1.0F - smoothing : 0.0F);
      dx[c] = counts ? (expf(x[c] - largest) * inverse - target) * scale : 0.0F;
    }
  }
};

// The rows' results in a fixed order, so that the loss does not depend on the number of threads.
struct SumRows {
  const double* row_loss;
  const std::int32_t* row_correct;
  double* loss;
  std::int32_t* correct;
  std::int64_t rows;

  PO_HD void operator()(std::int64_t) const {
    double sum = 0;
    std::int32_t hits = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      sum += row_loss[row];
      hits += row_correct[row];
    }
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
  for_each(context.stream, 1, SumRows{row_loss, row_correct, context.loss_sum, context.correct, rows});
}

}  // namespace pipeoptim
