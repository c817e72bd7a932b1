#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/functions.h"
#include "layers/lanes.h"
#include "layers/softmax_cross_entropy.h"

namespace pipeoptim {
namespace {

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
    const float largest = highest.reduce(team, LargerOf{});

    Lanes<float> sums(0), totals(0);
    Lanes<std::int32_t> firsts(classes);
    for_each_column(team, classes, [&](std::int32_t c, int lane) {
      sums.value[lane] += exp_of(x[c] - largest);
      totals.value[lane] += x[c] - largest;
      const std::int32_t candidate = x[c] == largest ? c : classes;
      firsts.value[lane] = candidate < firsts.value[lane] ? candidate : firsts.value[lane];
    });
    const float sum = sums.reduce(team, SumOf{});
    const float total = totals.reduce(team, SumOf{});
    const std::int32_t first = firsts.reduce(team, SmallerOf{});

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
    sum = team.reduce(sum, SumOf{});
    hits = team.reduce(hits, SumOf{});
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
  const auto rows = static_cast<std::size_t>(logits.elements() / logits.last());
  return align_up(rows * sizeof(double)) + align_up(rows * sizeof(std::int32_t));
}

void SoftmaxCrossEntropy::run(const LossContext& context) const {
  const Shape& shape = context.logits.shape;
  if (shape.rank() != 2 && shape.rank() != 3) {
    throw std::invalid_argument(
        "softmax cross-entropy needs logits of shape records x classes or records x positions x classes, "
        "got " +
        shape.to_string());
  }
  const std::int64_t classes = shape.last();
  const std::int64_t rows = shape.elements() / classes;
  auto* row_loss = reinterpret_cast<double*>(context.workspace);
  auto* row_correct = reinterpret_cast<std::int32_t*>(
      context.workspace + align_up(static_cast<std::size_t>(rows) * sizeof(double)));
  for_each_row(context.stream, rows, classes,
               SoftmaxRow{context.logits.data, context.labels, context.logits_gradient.data, row_loss,
                          row_correct, static_cast<std::int32_t>(classes), smoothing_, context.scale});
  for_each_row(context.stream, 1, rows,
               SumRows{row_loss, row_correct, context.loss_sum, context.correct, rows});
}

}  // namespace pipeoptim
