// The kernels around Muon's iteration. Include only from .cu files.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/runtime/macros.h"
#include "optim/guard.h"

namespace pipeoptim {

inline constexpr double kLeastMuonNorm = 1e-7;  // a matrix of zeros stays one

struct MuonMomentum {
  float momentum = 0.95f;
  float one_minus_momentum = 0.05f;

  PO_HD float advanced(float m, float g) const { return momentum * m + one_minus_momentum * g; }
  // Nesterov's look ahead, from the momentum of after the step.
  PO_HD float ahead(float m, float g) const { return one_minus_momentum * g + momentum * m; }
};

// Advances the momenta; partials[chunk] <- the sum of squares of what the direction is made of.
struct AdvanceMomenta {
  using LongRows = void;  // chunks
  MuonMomentum momentum;
  const StepState* state;
  const ArenaChunk* chunks;
  const float* gradients;
  float* momenta;
  double* partials;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    if (state->skip != 0) return;
    const ArenaChunk chunk = chunks[row];
    double sum = 0;
    for (std::int64_t i = chunk.begin + team.rank(); i < chunk.end; i += team.size()) {
      const float g = state->gradient_scale * gradients[i];
      momenta[i] = momentum.advanced(momenta[i], g);
      const double x = static_cast<double>(momentum.ahead(momenta[i], g));
      sum += x * x;
    }
    sum = team.reduce(sum, Sum{});
    if (team.rank() == 0) partials[row] = sum;
  }
};

// x <- the momenta ahead of one matrix, over their Frobenius norm.
struct Normalize {
  using LongRows = void;  // chunks
  MuonMomentum momentum;
  const StepState* state;
  const ArenaChunk* chunks;  // of the matrix, as partials
  std::int64_t chunk_count;
  std::int64_t begin;
  const float* gradients;
  const float* momenta;
  const double* partials;
  float* x;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    if (state->skip != 0) return;
    double sum = 0;
    for (std::int64_t i = team.rank(); i < chunk_count; i += team.size()) sum += partials[i];
    sum = team.reduce(sum, Sum{});
    const double norm = sqrt(sum);
    const float factor = static_cast<float>(1 / (norm > kLeastMuonNorm ? norm : kLeastMuonNorm));
    const ArenaChunk chunk = chunks[row];
    for (std::int64_t i = chunk.begin + team.rank(); i < chunk.end; i += team.size()) {
      x[i - begin] = factor * momentum.ahead(momenta[i], state->gradient_scale * gradients[i]);
    }
  }
};

// A skipped step keeps the direction that it had: what the iteration made of it is thrown away here.
struct KeepDirection {
  const StepState* state;
  const float* x;
  float* directions;
  float scale;

  PO_HD void operator()(std::int64_t i) const {
    if (state->skip == 0) directions[i] = scale * x[i];
  }
};

}  // namespace pipeoptim
