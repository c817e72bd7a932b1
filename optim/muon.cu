#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "optim/factory.h"
#include "optim/muon.h"
#include "optim/muon_bodies.h"
#include "optim/rules/all.h"
#include "optim/step.h"

namespace pipeoptim {
namespace {

// x <- a x + (b A + c A^2) x with A = x x^T drives the singular values of x from (0, 1] to near 1.
constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;

struct Matrix {
  std::int64_t begin = 0;  // in the arena
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t first_chunk = 0;
  std::int64_t chunk_count = 0;

  std::int64_t elements() const { return rows * columns; }
  std::int64_t side() const { return std::min(rows, columns); }
};

// The matrices of an arena in order, and its elements in chunks: of the matrices, and of all else.
struct MatrixPlan {
  std::vector<Matrix> matrices;
  std::vector<ArenaChunk> matrix_chunks, other_chunks;
  std::int64_t largest = 0;       // elements of a matrix
  std::int64_t largest_side = 0;  // the shorter one of a matrix
};

void cut_range(const OptimizerArena& arena, std::int64_t begin, std::int64_t end, double weight_decay,
               std::vector<ArenaChunk>& chunks) {
  for (const ArenaRange& group : arena_groups(arena)) {
    cut({std::max(begin, group.begin), std::min(end, group.end), group.decays}, weight_decay,
        arena.rounded_elements, chunks);
  }
}

MatrixPlan plan_matrices(const OptimizerArena& arena, double weight_decay) {
  std::vector<NamedRange> ranges = arena.names;
  std::erase_if(ranges, [](const NamedRange& range) { return range.rows == 0 || range.begin == range.end; });
  std::sort(ranges.begin(), ranges.end(),
            [](const NamedRange& a, const NamedRange& b) { return a.begin < b.begin; });
  MatrixPlan plan;
  std::int64_t covered = 0;
  for (const NamedRange& range : ranges) {
    if (range.begin < covered) throw std::invalid_argument("muon: '" + range.name + "' overlaps a matrix");
    cut_range(arena, covered, range.begin, weight_decay, plan.other_chunks);
    const auto first = static_cast<std::int64_t>(plan.matrix_chunks.size());
    cut_range(arena, range.begin, range.end, weight_decay, plan.matrix_chunks);
    plan.matrices.push_back({.begin = range.begin,
                             .rows = range.rows,
                             .columns = (range.end - range.begin) / range.rows,
                             .first_chunk = first,
                             .chunk_count = static_cast<std::int64_t>(plan.matrix_chunks.size()) - first});
    plan.largest = std::max(plan.largest, plan.matrices.back().elements());
    plan.largest_side = std::max(plan.largest_side, plan.matrices.back().side());
    covered = range.end;
  }
  cut_range(arena, covered, arena.elements, weight_decay, plan.other_chunks);
  return plan;
}

class MuonOptimizer final : public StepOptimizer {
 public:
  MuonOptimizer(Device device, const OptimizerConfig& config, const OptimizerArena& arena,
                MatrixPlan matrices, MultiplyMatrices multiply)
      : StepOptimizer(device, slot_names<MuonMatrix>(), {.beta1 = *config.beta1, .beta2 = *config.beta2},
                      config, arena),
        others_{{detail::adam_moments(config)}},
        momentum_{.momentum = static_cast<float>(*config.momentum),
                  .one_minus_momentum = static_cast<float>(1 - *config.momentum)},
        scale_(config.muon_scale),
        multiply_(multiply),
        matrices_(std::move(matrices.matrices)),
        matrix_chunks_(device, matrices.matrix_chunks, arena.rounded_elements),
        other_chunks_(device, matrices.other_chunks, arena.rounded_elements),
        partials_(device, matrices.matrix_chunks.size()),
        x_(device, static_cast<std::size_t>(matrices.largest)),
        next_x_(device, static_cast<std::size_t>(matrices.largest)),
        square_(device, static_cast<std::size_t>(matrices.largest_side * matrices.largest_side)),
        polynomial_(device, square_.size()) {}

 private:
  void run(Stream& stream, const Pass& pass) override {
    if (pass.update != Update::kNone) make_directions(stream, pass.gradients);
    launch_pass(stream, matrix_chunks_.list(), pass.update, pass.prediction, arguments(MuonMatrix{}, pass));
    launch_pass(stream, other_chunks_.list(), pass.update, pass.prediction, arguments(others_, pass));
  }

  void make_directions(Stream& stream, const float* gradients) {
    const ChunkList chunks = matrix_chunks_.list();
    for_each_row(stream, chunks.count, kChunkElements,
                 AdvanceMomenta{.momentum = momentum_,
                                .state = plan().state(),
                                .chunks = chunks.data,
                                .gradients = gradients,
                                .momenta = slot(0),
                                .partials = partials_.data()});
    for (const Matrix& matrix : matrices_) {
      for_each_row(stream, matrix.chunk_count, kChunkElements,
                   Normalize{.momentum = momentum_,
                             .state = plan().state(),
                             .chunks = chunks.data + matrix.first_chunk,
                             .chunk_count = matrix.chunk_count,
                             .begin = matrix.begin,
                             .gradients = gradients,
                             .momenta = slot(0),
                             .partials = partials_.data() + matrix.first_chunk,
                             .x = x_.data()});
      const float* const factor = iterate(stream, matrix);
      for_each(stream, matrix.elements(),
               KeepDirection{plan().state(), factor, slot(1) + matrix.begin, scale(matrix)});
    }
  }

  // Newton-Schulz on x_, over the shorter side of the matrix; returns where the orthogonal factor is.
  const float* iterate(Stream& stream, const Matrix& matrix) {
    const bool tall = matrix.rows > matrix.columns;
    const std::int64_t side = matrix.side(), elements = matrix.elements();
    float* x = x_.data();
    float* next = next_x_.data();
    MatrixProduct gram{.flip = tall ? MatrixProduct::Flip::kA : MatrixProduct::Flip::kB,
                       .rows = side,
                       .columns = side,
                       .inner = elements / side,
                       .c = square_.data()};
    const MatrixProduct polynomial{.rows = side,
                                   .columns = side,
                                   .inner = side,
                                   .a = square_.data(),
                                   .b = square_.data(),
                                   .c = polynomial_.data(),
                                   .alpha = kC,
                                   .beta = kB};
    MatrixProduct step{.rows = matrix.rows, .columns = matrix.columns, .inner = side, .beta = kA};
    for (int i = 0; i < kIterations; ++i) {
      gram.a = gram.b = x;
      multiply_(stream, gram);
      copy(stream, polynomial_.data(), square_.data(), side * side);
      multiply_(stream, polynomial);
      copy(stream, next, x, elements);
      step.a = tall ? x : polynomial_.data();
      step.b = tall ? polynomial_.data() : x;
      step.c = next;
      multiply_(stream, step);
      std::swap(x, next);
    }
    return x;
  }

  float scale(const Matrix& matrix) const {
    const auto rows = static_cast<double>(matrix.rows), columns = static_cast<double>(matrix.columns);
    return static_cast<float>(scale_ == MuonScale::kOriginal ? std::sqrt(std::max(1.0, rows / columns))
                                                             : 0.2 * std::sqrt(std::max(rows, columns)));
  }

  static void copy(Stream& stream, float* to, const float* from, std::int64_t elements) {
    stream.copy(to, from, static_cast<std::size_t>(elements) * sizeof(float));
  }

  AdamW others_;
  MuonMomentum momentum_;
  MuonScale scale_;
  MultiplyMatrices multiply_;
  std::vector<Matrix> matrices_;
  ArenaChunks matrix_chunks_, other_chunks_;
  Buffer<double> partials_;
  Buffer<float> x_, next_x_, square_, polynomial_;
};

}  // namespace

namespace detail {

std::unique_ptr<Optimizer> make_muon(Device device, const OptimizerConfig& config, OptimizerArena arena,
                                     MultiplyMatrices multiply) {
  MatrixPlan matrices = plan_matrices(arena, config.weight_decay);
  if (!matrices.matrices.empty() && multiply == nullptr) {
    throw std::invalid_argument("muon needs a product of matrices");
  }
  return std::make_unique<MuonOptimizer>(device, config, arena, std::move(matrices), multiply);
}

std::size_t muon_workspace_bytes(const OptimizerArena& arena) {
  const MatrixPlan plan = plan_matrices(arena, 0);
  return 2 * sizeof(float) * static_cast<std::size_t>(plan.largest + plan.largest_side * plan.largest_side);
}

}  // namespace detail

}  // namespace pipeoptim
