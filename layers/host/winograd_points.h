// The vector code of Winograd's F(2x2, 3x3), see winograd.h. A tile's 16 points are 4x4, row by row; images
// are [row][column][channel], with channels in groups of 16. Blocks of tiles follow the images, row by row.
#pragma once

#include <cstdint>

#include "layers/layer.h"

namespace pipeoptim::host::winograd {

inline constexpr std::int64_t kKernel = 3, kPoints = 16;
inline constexpr std::int64_t kGroup = 16;  // channels are multiples of it
inline constexpr std::int64_t kTiles = 24;  // that are convolved at a time
// Room for one more keeps a tile's points from lying a multiple of some KiB apart, where they would compete
// for the same places in the first-level cache.
inline constexpr std::int64_t kRoom = kTiles + 1;

struct Images {
  std::int64_t rows, columns, channels, tile_rows, tile_columns;
};

// For one instruction set. All give the same bits.
struct Code {
  // points[point][tile][channel] <- B' d B of `count` tiles from `first` on; a point has kRoom tiles.
  void (*transform_inputs)(const Images& images, const float* values, std::int64_t first, std::int64_t count,
                           float* points);
  // The same, A dy A' of the first `channels` of them.
  void (*transform_gradients)(const Images& images, const float* values, std::int64_t channels,
                              std::int64_t first, std::int64_t count, float* points);

  // G g G' of one output channel's weights [kernel row][kernel column][in], into the place among all
  // transformed weights that convolve_tiles() reads; flipped for the way back, from out to in channels.
  void (*transform_forward)(const float* weights, std::int64_t in, std::int64_t out, std::int64_t output,
                            float* transformed);
  void (*transform_flipped)(const float* weights, std::int64_t in, std::int64_t out, std::int64_t output,
                            float* transformed);

  // A' products A of `count` tiles, and the bias, which may be null. `points` is room for kPoints kRoom
  // points of the source's channels, and of two groups.
  void (*convolve_tiles)(const Images& from, const float* values, const Images& to, const float* weights,
                         const float* bias, float* results, std::int64_t first, std::int64_t count,
                         float* points);

  // sums[point][output][input] += gradients[point][tile][output] points[point][tile][input], of `out` outputs
  // and `tiles` tiles; sums are sums_step from point to point.
  void (*add_tiles)(const float* points, std::int64_t in, const float* gradients, std::int64_t out,
                    std::int64_t tiles, float* sums, std::int64_t sums_step);
  // G' sums G of one output channel, whose sums begin at `sums` and are `weights` from point to point; those
  // of `parts` threads lie one behind the other. The gradient is [kernel row][kernel column][in].
  void (*gather_kernel)(const float* sums, std::int64_t parts, std::int64_t weights, std::int64_t in,
                        GradientMode mode, float* gradient);
};

// Null where the processor does not have the instructions.
const Code* avx2_code();
const Code* avx512_code();
// The best there is; null where there is none.
const Code* best_code();

}  // namespace pipeoptim::host::winograd
