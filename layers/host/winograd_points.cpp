#include "layers/host/winograd_points.h"

#include <array>

#include "layers/host/avx512.h"

namespace pipeoptim::host::winograd {

#if defined(__x86_64__)

namespace {

using Vector = __m512;
using Square = Vector[4][4];

// B' of a column of four.
PO_AVX512 [[gnu::always_inline]] inline void transform_input(Vector& a, Vector& b, Vector& c, Vector& d) {
  const Vector first = _mm512_sub_ps(a, c), second = _mm512_add_ps(b, c), third = _mm512_sub_ps(c, b);
  d = _mm512_sub_ps(b, d);
  a = first, b = second, c = third;
}

// The 4x4 pixels that a tile sees; outside of the image they are 0.
class Window {
 public:
  Window(const Images& images, const float* image, std::int64_t tile_row, std::int64_t tile_column)
      : row_(2 * tile_row - 1),
        column_(2 * tile_column - 1),
        rows_(images.rows),
        columns_(images.columns),
        step_(images.channels),
        first_(image + (row_ * columns_ + column_) * step_) {}

  bool inside() const { return row_ >= 0 && column_ >= 0 && row_ + 4 <= rows_ && column_ + 4 <= columns_; }

  // 16 channels from `channel` on.
  template <bool kInside>
  PO_AVX512 [[gnu::always_inline]] void load(std::int64_t channel, Square& pixels) const {
    const float* const from = first_ + channel;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const bool there =
            kInside || (row_ + i >= 0 && row_ + i < rows_ && column_ + j >= 0 && column_ + j < columns_);
        pixels[i][j] = there ? _mm512_loadu_ps(from + (i * columns_ + j) * step_) : _mm512_setzero_ps();
      }
    }
  }

 private:
  std::int64_t row_, column_, rows_, columns_, step_;
  const float* first_;
};

// B' d B of all channels; points are `step` apart.
template <bool kInside>
PO_AVX512 [[gnu::always_inline]] inline void transform_window(const Window& window, std::int64_t channels,
                                                              std::int64_t step, float* points) {
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    Square d;
    window.load<kInside>(c, d);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) transform_input(d[0][j], d[1][j], d[2][j], d[3][j]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) transform_input(d[i][0], d[i][1], d[i][2], d[i][3]);
#pragma GCC unroll 16
    for (int p = 0; p < kPoints; ++p) _mm512_storeu_ps(points + p * step + c, d[p / 4][p % 4]);
  }
}

// A of a column of two.
PO_AVX512 [[gnu::always_inline]] inline void transform_gradient(const Vector& upper, const Vector& lower,
                                                                Vector (&to)[4]) {
  to[0] = upper;
  to[1] = _mm512_add_ps(upper, lower);
  to[2] = _mm512_sub_ps(upper, lower);
  to[3] = _mm512_sub_ps(_mm512_setzero_ps(), lower);
}

// Calls body(place in the block, where its image begins, tile row, tile column) for the tiles from `first`
// on.
template <typename Body>
PO_AVX512 [[gnu::always_inline]] inline void each_tile(const Images& images, std::int64_t first,
                                                       std::int64_t count, const Body& body) {
  const std::int64_t image_tiles = images.tile_rows * images.tile_columns;
  const std::int64_t image_values = images.rows * images.columns * images.channels;
  const std::int64_t tile = first % image_tiles;
  std::int64_t image = first / image_tiles * image_values;
  std::int64_t row = tile / images.tile_columns, column = tile % images.tile_columns;
  for (std::int64_t t = 0; t < count; ++t) {
    body(t, image, row, column);
    if (++column < images.tile_columns) continue;
    column = 0;
    if (++row < images.tile_rows) continue;
    row = 0;
    image += image_values;
  }
}

}  // namespace

PO_AVX512 void transform_inputs(const Images& images, const float* values, std::int64_t first,
                                std::int64_t count, float* points) {
  const auto transform = [&](std::int64_t t, std::int64_t image, std::int64_t tile_row,
                             std::int64_t tile_column) PO_AVX512 {
    const Window window(images, values + image, tile_row, tile_column);
    float* const to = points + t * images.channels;
    if (window.inside()) {
      transform_window<true>(window, images.channels, kRoom * images.channels, to);
    } else {
      transform_window<false>(window, images.channels, kRoom * images.channels, to);
    }
  };
  each_tile(images, first, count, transform);
}

PO_AVX512 void transform_gradients(const Images& images, const float* values, std::int64_t channels,
                                   std::int64_t first, std::int64_t count, float* points) {
  const std::int64_t right_step = images.channels, below_step = images.columns * images.channels;
  const auto transform = [&](std::int64_t t, std::int64_t image, std::int64_t tile_row,
                             std::int64_t tile_column) PO_AVX512 {
    const float* const pixel = values + image + 2 * tile_row * below_step + 2 * tile_column * right_step;
    const bool below = 2 * tile_row + 1 < images.rows, right = 2 * tile_column + 1 < images.columns;
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      const Vector zero = _mm512_setzero_ps();
      Vector columns[2][4];
      transform_gradient(_mm512_loadu_ps(pixel + c), below ? _mm512_loadu_ps(pixel + c + below_step) : zero,
                         columns[0]);
      transform_gradient(right ? _mm512_loadu_ps(pixel + c + right_step) : zero,
                         below && right ? _mm512_loadu_ps(pixel + c + below_step + right_step) : zero,
                         columns[1]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Vector row[4];
        transform_gradient(columns[0][i], columns[1][i], row);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          _mm512_storeu_ps(points + ((4 * i + j) * kRoom + t) * channels + c, row[j]);
      }
    }
  };
  each_tile(images, first, count, transform);
}

namespace {

// A' of a column of four.
PO_AVX512 [[gnu::always_inline]] inline void transform_output(Vector a, Vector b, Vector c, Vector d,
                                                              Vector& upper, Vector& lower) {
  upper = _mm512_add_ps(a, _mm512_add_ps(b, c));
  lower = _mm512_sub_ps(_mm512_sub_ps(b, c), d);
}

// Writes `width` channels from `channel` on of `count` tiles: A' products A, and the bias.
PO_AVX512 void transform_outputs(const Images& images, const float* products, std::int64_t first,
                                 std::int64_t count, std::int64_t channel, std::int64_t width,
                                 const float* bias, float* values) {
  const std::int64_t row_step = images.columns * images.channels;
  const auto transform = [&](std::int64_t t, std::int64_t image, std::int64_t tile_row,
                             std::int64_t tile_column) PO_AVX512 {
    float* const pixel =
        values + image + 2 * tile_row * row_step + 2 * tile_column * images.channels + channel;
    const bool below = 2 * tile_row + 1 < images.rows, right = 2 * tile_column + 1 < images.columns;
    for (std::int64_t k = 0; k < width; k += kLanes) {
      Vector halves[2][4], y[2][2];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const auto at = [&](int i) PO_AVX512 {
          return _mm512_loadu_ps(products + ((4 * i + j) * kRoom + t) * width + k);
        };
        transform_output(at(0), at(1), at(2), at(3), halves[0][j], halves[1][j]);
      }
      const Vector added = bias != nullptr ? _mm512_loadu_ps(bias + channel + k) : _mm512_setzero_ps();
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        transform_output(halves[i][0], halves[i][1], halves[i][2], halves[i][3], y[i][0], y[i][1]);
        y[i][0] = _mm512_add_ps(y[i][0], added);
        y[i][1] = _mm512_add_ps(y[i][1], added);
      }
      float* const to = pixel + k;
      _mm512_storeu_ps(to, y[0][0]);
      if (right) _mm512_storeu_ps(to + images.channels, y[0][1]);
      if (below) _mm512_storeu_ps(to + row_step, y[1][0]);
      if (below && right) _mm512_storeu_ps(to + row_step + images.channels, y[1][1]);
    }
  };
  each_tile(images, first, count, transform);
}

// products[tile][channel] <- points[tile][inner] weights[inner][channel], kColumns vectors of channels.
template <int kRows, int kColumns>
PO_AVX512 [[gnu::always_inline]] inline void multiply(const float* points, const float* weights,
                                                      std::int64_t inner, float* products) {
  Vector sums[kRows][kColumns];
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) sums[r][j] = _mm512_setzero_ps();
  }
  for (std::int64_t c = 0; c < inner; ++c, weights += kColumns * kLanes) {
    Vector row[kColumns];
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) row[j] = _mm512_loadu_ps(weights + j * kLanes);
#pragma GCC unroll 24
    for (int r = 0; r < kRows; ++r) {
      const Vector point = _mm512_set1_ps(points[r * inner + c]);
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) sums[r][j] = _mm512_fmadd_ps(point, row[j], sums[r][j]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) _mm512_storeu_ps(products + (r * kColumns + j) * kLanes, sums[r][j]);
  }
}

// All points of a block of tiles, for kColumns vectors of channels: weights[point][inner][channel].
template <int kRows, int kColumns>
PO_AVX512 void multiply_points(const float* points, const float* weights, std::int64_t weights_step,
                               std::int64_t inner, float* products) {
  for (std::int64_t p = 0; p < kPoints; ++p) {
    for (std::int64_t t = 0; t < kTiles; t += kRows) {
      multiply<kRows, kColumns>(points + (p * kRoom + t) * inner, weights + p * weights_step, inner,
                                products + (p * kRoom + t) * kColumns * kLanes);
    }
  }
}

// sums[output][input] += gradients[tile][output] points[tile][input], kRows outputs by kColumns vectors.
template <int kRows, int kColumns>
PO_AVX512 void add_products(const float* points, std::int64_t in, const float* gradients, std::int64_t out,
                            std::int64_t tiles, float* sums) {
  Vector all[kRows][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) all[r][j] = _mm512_loadu_ps(sums + r * in + j * kLanes);
  }
  for (std::int64_t t = 0; t < tiles; ++t, points += in, gradients += out) {
    Vector row[kColumns];
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) row[j] = _mm512_loadu_ps(points + j * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vector gradient = _mm512_set1_ps(gradients[r]);
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) all[r][j] = _mm512_fmadd_ps(gradient, row[j], all[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) _mm512_storeu_ps(sums + r * in + j * kLanes, all[r][j]);
  }
}

// G of a column of three.
PO_AVX512 [[gnu::always_inline]] inline void transform_weight(const Vector& a, const Vector& b,
                                                              const Vector& c, Vector (&to)[4]) {
  const Vector half = _mm512_set1_ps(0.5F);
  const Vector outer = _mm512_mul_ps(half, _mm512_add_ps(a, c)), inner = _mm512_mul_ps(half, b);
  to[0] = a;
  to[1] = _mm512_add_ps(outer, inner);
  to[2] = _mm512_sub_ps(outer, inner);
  to[3] = c;
}

// G' of a column of four.
PO_AVX512 [[gnu::always_inline]] inline void gather_weight(const Vector& a, const Vector& b, const Vector& c,
                                                           const Vector& d, Vector (&to)[3]) {
  const Vector half = _mm512_set1_ps(0.5F);
  const Vector sum = _mm512_mul_ps(half, _mm512_add_ps(b, c));
  to[0] = _mm512_add_ps(a, sum);
  to[1] = _mm512_mul_ps(half, _mm512_sub_ps(b, c));
  to[2] = _mm512_add_ps(sum, d);
}

// G g G' of 16 input channels of one output channel, whose weights are [row][column][input].
PO_AVX512 [[gnu::always_inline]] inline void transform_kernel(const float* weights, std::int64_t in,
                                                              bool flipped, Square& points) {
  Vector columns[kKernel][4];
#pragma GCC unroll 3
  for (int j = 0; j < kKernel; ++j) {
    const auto at = [&](int i) PO_AVX512 {
      const int tap = i * 3 + j;
      return _mm512_loadu_ps(weights + (flipped ? 8 - tap : tap) * in);
    };
    transform_weight(at(0), at(1), at(2), columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) transform_weight(columns[0][i], columns[1][i], columns[2][i], points[i]);
}

// Where a pair of channels lies in transformed weights [point][block of output channels][inner][channel].
// Blocks have 32 channels, the last one 16 where there is one over.
struct WeightBlocks {
  std::int64_t inner, channels;
  std::int64_t width(std::int64_t channel) const {
    return channels - channel < 2 * kLanes ? kLanes : 2 * kLanes;
  }
  std::int64_t block(std::int64_t channel) const { return channel / (2 * kLanes) * (2 * kLanes); }
  std::int64_t at(std::int64_t c, std::int64_t channel) const {
    const std::int64_t begin = block(channel);
    return begin * inner + c * width(begin) + channel - begin;
  }
};

}  // namespace

PO_AVX512 void transform_forward(const float* weights, std::int64_t in, std::int64_t out, std::int64_t output,
                                 float* transformed) {
  const WeightBlocks blocks{in, out};
  const std::int64_t step = blocks.at(1, output) - blocks.at(0, output);
  for (std::int64_t c = 0; c < in; c += kLanes) {
    Square points;
    transform_kernel(weights + c, in, false, points);
    for (int p = 0; p < kPoints; ++p) {
      alignas(64) std::array<float, kLanes> values;
      _mm512_store_ps(values.data(), points[p / 4][p % 4]);
      float* const to = transformed + p * in * out + blocks.at(c, output);
      for (int lane = 0; lane < kLanes; ++lane) to[lane * step] = values[static_cast<std::size_t>(lane)];
    }
  }
}

PO_AVX512 void transform_flipped(const float* weights, std::int64_t in, std::int64_t out, std::int64_t output,
                                 float* transformed) {
  const WeightBlocks blocks{out, in};
  for (std::int64_t c = 0; c < in; c += kLanes) {
    Square points;
    transform_kernel(weights + c, in, true, points);
#pragma GCC unroll 16
    for (int p = 0; p < kPoints; ++p)
      _mm512_storeu_ps(transformed + p * in * out + blocks.at(output, c), points[p / 4][p % 4]);
  }
}

PO_AVX512 void convolve_tiles(const Images& from, const float* values, const Images& to, const float* weights,
                              const float* bias, float* results, std::int64_t first, std::int64_t count,
                              float* points) {
  float* const products = points + kPoints * kRoom * from.channels;
  const WeightBlocks blocks{from.channels, to.channels};
  const std::int64_t weights_step = from.channels * to.channels;
  transform_inputs(from, values, first, count, points);
  for (std::int64_t channel = 0; channel < to.channels; channel += 2 * kLanes) {
    const std::int64_t width = blocks.width(channel);
    const float* const block = weights + blocks.at(0, channel);
    if (width == kLanes) {
      multiply_points<kTiles, 1>(points, block, weights_step, from.channels, products);
    } else {
      multiply_points<kTiles / 2, 2>(points, block, weights_step, from.channels, products);
    }
    transform_outputs(to, products, first, count, channel, width, bias, results);
  }
}

PO_AVX512 void add_tiles(const float* points, std::int64_t in, const float* gradients, std::int64_t out,
                         std::int64_t tiles, float* sums, std::int64_t sums_step) {
  for (std::int64_t p = 0; p < kPoints;
       ++p, points += kRoom * in, gradients += kRoom * out, sums += sums_step) {
    std::int64_t c = 0;
    for (; c + 2 * kLanes <= in; c += 2 * kLanes) {
      for (std::int64_t o = 0; o < out; o += 8)
        add_products<8, 2>(points + c, in, gradients + o, out, tiles, sums + o * in + c);
    }
    for (; c < in; c += kLanes) {
      for (std::int64_t o = 0; o < out; o += 16)
        add_products<16, 1>(points + c, in, gradients + o, out, tiles, sums + o * in + c);
    }
  }
}

PO_AVX512 void gather_kernel(const float* sums, std::int64_t parts, std::int64_t weights, std::int64_t at,
                             std::int64_t in, GradientMode mode, float* gradient) {
  Square all;
#pragma GCC unroll 16
  for (int p = 0; p < kPoints; ++p) {
    Vector sum = _mm512_loadu_ps(sums + p * weights + at);
    for (std::int64_t part = 1; part < parts; ++part)
      sum = _mm512_add_ps(sum, _mm512_loadu_ps(sums + (part * kPoints + p) * weights + at));
    all[p / 4][p % 4] = sum;
  }
  Vector columns[4][kKernel];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) gather_weight(all[0][j], all[1][j], all[2][j], all[3][j], columns[j]);
#pragma GCC unroll 3
  for (int i = 0; i < kKernel; ++i) {
    Vector row[kKernel];
    gather_weight(columns[0][i], columns[1][i], columns[2][i], columns[3][i], row);
#pragma GCC unroll 3
    for (int j = 0; j < kKernel; ++j) {
      float* const to = gradient + (i * kKernel + j) * in;
      _mm512_storeu_ps(to, mode == GradientMode::kAdd ? _mm512_add_ps(_mm512_loadu_ps(to), row[j]) : row[j]);
    }
  }
}

#else

void transform_inputs(const Images&, const float*, std::int64_t, std::int64_t, float*) {}
void transform_gradients(const Images&, const float*, std::int64_t, std::int64_t, std::int64_t, float*) {}
void transform_forward(const float*, std::int64_t, std::int64_t, std::int64_t, float*) {}
void transform_flipped(const float*, std::int64_t, std::int64_t, std::int64_t, float*) {}
void convolve_tiles(const Images&, const float*, const Images&, const float*, const float*, float*,
                    std::int64_t, std::int64_t, float*) {}
void add_tiles(const float*, std::int64_t, const float*, std::int64_t, std::int64_t, float*, std::int64_t) {}
void gather_kernel(const float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, GradientMode,
                   float*) {}

#endif

}  // namespace pipeoptim::host::winograd
