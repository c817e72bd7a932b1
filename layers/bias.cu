#include <algorithm>

#include "kernels/runtime/launch.h"
#include "layers/bias.h"

namespace pipeoptim {
namespace {

constexpr std::int64_t kMaxChunks = 256;    // enough blocks for a device, few enough partial sums
constexpr std::int64_t kMinChunkRows = 64;  // a chunk's sums are worth a launch of their own

struct Chunks {
  std::int64_t rows;  // of one chunk
  std::int64_t count;
};

Chunks cut(Rows extents) {
  const std::int64_t rows = std::max(kMinChunkRows, (extents.rows + kMaxChunks - 1) / kMaxChunks);
  return {rows, (extents.rows + rows - 1) / rows};
}

struct AddBias {
  const float* bias;
  float* values;
  std::int64_t columns;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    float* const to = values + row * columns;
    for (std::int64_t c = team.rank(); c < columns; c += team.size()) to[c] += bias[c];
  }
};

// One chunk of rows to one row of partial sums. Both ways add a column's values in the order of its rows: a
// team's members read neighbouring columns, a single lane keeps the sums of a few columns in registers.
struct SumChunk {
  const float* values;
  float* partial;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t chunk_rows;

  template <typename Team>
  PO_HD void operator()(std::int64_t chunk, const Team& team) const {
    const std::int64_t begin = chunk * chunk_rows;
    const std::int64_t end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
    float* const sums = partial + chunk * columns;
    std::int64_t c = team.rank();
    if (team.size() == 1) {
      for (; c + 32 <= columns; c += 32) sum_tile<32>(begin, end, c, sums);
      for (; c + 8 <= columns; c += 8) sum_tile<8>(begin, end, c, sums);
    }
    for (; c < columns; c += team.size()) sum_tile<1>(begin, end, c, sums);
  }

 private:
  template <int kWidth>
  PO_HD void sum_tile(std::int64_t begin, std::int64_t end, std::int64_t column, float* sums) const {
    float tile[kWidth] = {};
    for (std::int64_t row = begin; row < end; ++row) {
      const float* const from = values + row * columns + column;
      for (int j = 0; j < kWidth; ++j) tile[j] += from[j];
    }
    for (int j = 0; j < kWidth; ++j) sums[column + j] = tile[j];
  }
};

struct SumPartials {
  const float* partial;
  float* gradient;
  std::int64_t columns;
  std::int64_t chunks;
  bool adds;

  PO_HD void operator()(std::int64_t c) const {
    float sum = 0;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * columns + c];
    gradient[c] = adds ? gradient[c] + sum : sum;
  }
};

}  // namespace

void add_bias(Stream& stream, Rows extents, const float* bias, float* values) {
  for_each_row(stream, extents.rows, extents.columns, AddBias{bias, values, extents.columns});
}

std::size_t bias_gradient_workspace(Rows extents) {
  return static_cast<std::size_t>(cut(extents).count * extents.columns) * sizeof(float);
}

void sum_bias_gradient(Stream& stream, Rows extents, const float* values, float* bias_gradient,
                       GradientMode mode, std::byte* workspace) {
  const Chunks chunks = cut(extents);
  float* const partial = reinterpret_cast<float*>(workspace);
  for_each_row(stream, chunks.count, extents.columns,
               SumChunk{values, partial, extents.rows, extents.columns, chunks.rows});
  for_each(stream, extents.columns,
           SumPartials{partial, bias_gradient, extents.columns, chunks.count, mode == GradientMode::kAdd});
}

}  // namespace pipeoptim
