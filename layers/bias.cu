#include <algorithm>

#include "kernels/runtime/launch.h"
#include "layers/bias.h"
#include "layers/tiles.h"
#include "layers/typed.h"

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

template <typename T>
struct AddBias {
  const float* bias;
  T* values;
  std::int64_t columns;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    T* const to = values + row * columns;
    for_each_tile(team, columns, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(to + c), addend = load_tile<kWidth>(bias + c);
      Pack<kWidth> sum;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) sum.value[v] = value.value[v] + addend.value[v];
      store_tile(to + c, sum);
    });
  }
};

// One chunk of rows to one row of partial sums.
template <typename T>
struct SumChunk {
  using LongRows = void;
  const T* values;
  float* partial;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t chunk_rows;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t chunk, const Team& team) const {
    sum_columns(team, row_slab(chunk, chunk_rows, rows, columns), values, columns, packs,
                [&]<int kWidth>(std::int64_t c, const Sums<1>::Of<kWidth>& all)
                    PO_INLINED { store_tile(partial + chunk * columns + c, all.sum[0]); });
  }
};

struct SumPartials {
  using LongRows = void;
  const float* partial;
  float* gradient;
  std::int64_t columns;
  std::int64_t chunks;
  bool adds;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    sum_columns(team, column_slab(index, chunks, columns), partial, columns, packs,
                [&]<int kWidth>(std::int64_t c, const Sums<1>::Of<kWidth>& all) PO_INLINED {
                  PO_SIMD
                  for (int v = 0; v < kWidth; ++v) {
                    const float sum = all.sum[0].value[v];
                    gradient[c + v] = adds ? gradient[c + v] + sum : sum;
                  }
                });
  }
};

}  // namespace

void add_bias(Stream& stream, Rows extents, const float* bias, const Destination& values) {
  with_type_of(values, [&]<typename T>() {
    T* const to = values_of<T>(values);
    for_each_row(stream, extents.rows, extents.columns,
                 AddBias<T>{bias, to, extents.columns, allow_tiles(extents.columns, bias, to)});
  });
}

std::size_t bias_gradient_workspace(Rows extents) {
  return static_cast<std::size_t>(cut(extents).count * extents.columns) * sizeof(float);
}

void sum_bias_gradient(Stream& stream, Rows extents, const Factor& values, float* bias_gradient,
                       GradientMode mode, std::byte* workspace) {
  const Chunks chunks = cut(extents);
  float* const partial = reinterpret_cast<float*>(workspace);
  with_type_of(values, [&]<typename T>() {
    const T* const from = values_of<T>(values);
    const bool packs = allow_tiles(extents.columns, from, partial);
    for_each_row(stream, chunks.count, extents.columns,
                 SumChunk<T>{from, partial, extents.rows, extents.columns, chunks.rows, packs});
  });
  for_each_row(stream, slabs_of(extents.columns), chunks.count,
               SumPartials{partial, bias_gradient, extents.columns, chunks.count, mode == GradientMode::kAdd,
                           allow_tiles(extents.columns, partial)});
}

}  // namespace pipeoptim
