#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/functions.h"
#include "layers/lanes.h"
#include "layers/softmax_cross_entropy.h"
#include "layers/tiles.h"

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
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const float* const x = logits + row * classes;
    Lanes<float> highest(x[0]);
    for_each_tile(team, classes, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto logit = load_tile<kWidth>(x + c);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float value = logit.value[v];
        highest.value[v] = value > highest.value[v] ? value : highest.value[v];
      }
    });
    const float largest = highest.reduce(team, LargerOf{});

    Lanes<float> sums(0), totals(0);
    Lanes<std::int32_t> firsts(classes);
    for_each_tile(team, classes, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto logit = load_tile<kWidth>(x + c);
      const auto first = static_cast<std::int32_t>(c);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float from_largest = logit.value[v] - largest;
        sums.value[v] += exp_of(from_largest);
        totals.value[v] += from_largest;
        const std::int32_t candidate = logit.value[v] == largest ? first + v : classes;
        firsts.value[v] = candidate < firsts.value[v] ? candidate : firsts.value[v];
      }
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
    // d(loss)/d(logit) = softmax - target.
    const float inverse = scale / sum;
    const float floor = scale * smoothing / static_cast<float>(classes);
    const float peak = floor + scale * (1.0F - smoothing);
    for_each_tile(team, classes, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto logit = load_tile<kWidth>(x + c);
      const auto hit = static_cast<std::int32_t>(label - c);  // the label's place in the tile
      Pack<kWidth> out;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float value = exp_of(logit.value[v] - largest) * inverse - (v == hit ? peak : floor);
        out.value[v] = counts ? value : 0.0F;
      }
      store_tile(gradient + row * classes + c, out);
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
                          row_correct, static_cast<std::int32_t>(classes), smoothing_, context.scale,
                          allow_tiles(classes, context.logits.data, context.logits_gradient.data)});
  for_each_row(context.stream, 1, rows,
               SumRows{row_loss, row_correct, context.loss_sum, context.correct, rows});
}

}  // namespace pipeoptim
