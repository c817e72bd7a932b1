// Included once for each instruction set, by a file that says before what a vector is and how it is handled:
// PO_VECTORS, Vector, kLanes, load, store, broadcast and multiply_add. All sums are made in the same order,
// so that the sets give the same bits.

#include <array>

#include "layers/host/winograd_points.h"

namespace pipeoptim::host::winograd {
namespace {

// Of the 2 kLanes registers: rows of sums by two vectors, or twice as many by one, of products and of weight
// gradients.
constexpr int kSumRows = 3 * kLanes / 4, kOutputRows = kLanes / 2;

using Square = Vector[4][4];

// B' of a column of four.
PO_VECTORS [[gnu::always_inline]] inline void transform_input(Vector& a, Vector& b, Vector& c, Vector& d) {
  const Vector first = a - c, second = b + c, third = c - b;
  d = b - d;
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

  // A vector's channels from `channel` on.
  template <bool kInside>
  PO_VECTORS [[gnu::always_inline]] void read(std::int64_t channel, Square& pixels) const {
    const float* const from = first_ + channel;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const bool there =
            kInside || (row_ + i >= 0 && row_ + i < rows_ && column_ + j >= 0 && column_ + j < columns_);
        pixels[i][j] = there ? load(from + (i * columns_ + j) * step_) : Vector{};
      }
    }
  }

 private:
  std::int64_t row_, column_, rows_, columns_, step_;
  const float* first_;
};

// B' d B of all channels; points are `step` apart.
template <bool kInside>
PO_VECTORS [[gnu::always_inline]] inline void transform_window(const Window& window, std::int64_t channels,
                                                               std::int64_t step, float* points) {
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    Square d;
    window.read<kInside>(c, d);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) transform_input(d[0][j], d[1][j], d[2][j], d[3][j]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) transform_input(d[i][0], d[i][1], d[i][2], d[i][3]);
#pragma GCC unroll 16
    for (int p = 0; p < kPoints; ++p) store(points + p * step + c, d[p / 4][p % 4]);
  }
}

// A of a column of two.
PO_VECTORS [[gnu::always_inline]] inline void transform_gradient(const Vector& upper, const Vector& lower,
                                                                 Vector (&to)[4]) {
  to[0] = upper;
  to[1] = upper + lower;
  to[2] = upper - lower;
  to[3] = Vector{} - lower;
}

// Calls body(place in the block, where its image begins, tile row, tile column) for the tiles from `first`
// on.
template <typename Body>
PO_VECTORS [[gnu::always_inline]] inline void each_tile(const Images& images, std::int64_t first,
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

PO_VECTORS void transform_inputs(const Images& images, const float* values, std::int64_t first,
                                 std::int64_t count, float* points) {
  const auto transform = [&](std::int64_t t, std::int64_t image, std::int64_t tile_row,
                             std::int64_t tile_column) PO_VECTORS {
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

PO_VECTORS void transform_gradients(const Images& images, const float* values, std::int64_t channels,
                                    std::int64_t first, std::int64_t count, float* points) {
  const std::int64_t right_step = images.channels, below_step = images.columns * images.channels;
  const auto transform = [&](std::int64_t t, std::int64_t image, std::int64_t tile_row,
                             std::int64_t tile_column) PO_VECTORS {
    const float* const pixel = values + image + 2 * tile_row * below_step + 2 * tile_column * right_step;
    const bool below = 2 * tile_row + 1 < images.rows, right = 2 * tile_column + 1 < images.columns;
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      const Vector zero = Vector{};
      Vector columns[2][4];
      transform_gradient(load(pixel + c), below ? load(pixel + c + below_step) : zero, columns[0]);
      transform_gradient(right ? load(pixel + c + right_step) : zero,
                         below && right ? load(pixel + c + below_step + right_step) : zero, columns[1]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Vector row[4];
        transform_gradient(columns[0][i], columns[1][i], row);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store(points + ((4 * i + j) * kRoom + t) * channels + c, row[j]);
      }
    }
  };
  each_tile(images, first, count, transform);
}

// A' of a column of four.
PO_VECTORS [[gnu::always_inline]] inline void transform_output(Vector a, Vector b, Vector c, Vector d,
                                                               Vector& upper, Vector& lower) {
  upper = a + (b + c);
  lower = (b - c) - d;
}

// Writes `width` channels from `channel` on of `count` tiles: A' products A, and the bias.
PO_VECTORS void transform_outputs(const Images& images, const float* products, std::int64_t first,
                                  std::int64_t count, std::int64_t channel, std::int64_t width,
                                  const float* bias, float* values) {
  const std::int64_t row_step = images.columns * images.channels;
  const auto transform = [&](std::int64_t t, std::int64_t image, std::int64_t tile_row,
                             std::int64_t tile_column) PO_VECTORS {
    float* const pixel =
        values + image + 2 * tile_row * row_step + 2 * tile_column * images.channels + channel;
    const bool below = 2 * tile_row + 1 < images.rows, right = 2 * tile_column + 1 < images.columns;
    for (std::int64_t k = 0; k < width; k += kLanes) {
      Vector halves[2][4], y[2][2];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const auto at = [&](int i)
                            PO_VECTORS { return load(products + ((4 * i + j) * kRoom + t) * width + k); };
        transform_output(at(0), at(1), at(2), at(3), halves[0][j], halves[1][j]);
      }
      const Vector added = bias != nullptr ? load(bias + channel + k) : Vector{};
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        transform_output(halves[i][0], halves[i][1], halves[i][2], halves[i][3], y[i][0], y[i][1]);
        y[i][0] += added;
        y[i][1] += added;
      }
      float* const to = pixel + k;
      store(to, y[0][0]);
      if (right) store(to + images.channels, y[0][1]);
      if (below) store(to + row_step, y[1][0]);
      if (below && right) store(to + row_step + images.channels, y[1][1]);
    }
  };
  each_tile(images, first, count, transform);
}

// products[tile][channel] <- points[tile][inner] weights[inner][channel], kColumns vectors of channels.
template <int kRows, int kColumns>
PO_VECTORS [[gnu::always_inline]] inline void multiply(const float* points, const float* weights,
                                                       std::int64_t inner, float* products) {
  Vector sums[kRows][kColumns];
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) sums[r][j] = Vector{};
  }
  for (std::int64_t c = 0; c < inner; ++c, weights += kColumns * kLanes) {
    Vector row[kColumns];
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) row[j] = load(weights + j * kLanes);
#pragma GCC unroll 24
    for (int r = 0; r < kRows; ++r) {
      const Vector point = broadcast(points[r * inner + c]);
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) sums[r][j] = multiply_add(point, row[j], sums[r][j]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) store(products + (r * kColumns + j) * kLanes, sums[r][j]);
  }
}

// All points of a block of tiles, for kColumns vectors of channels: weights[point][inner][channel].
template <int kRows, int kColumns>
PO_VECTORS void multiply_points(const float* points, const float* weights, std::int64_t weights_step,
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
PO_VECTORS void add_products(const float* points, std::int64_t in, const float* gradients, std::int64_t out,
                             std::int64_t tiles, float* sums) {
  Vector all[kRows][kColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) all[r][j] = load(sums + r * in + j * kLanes);
  }
  for (std::int64_t t = 0; t < tiles; ++t, points += in, gradients += out) {
    Vector row[kColumns];
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) row[j] = load(points + j * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vector gradient = broadcast(gradients[r]);
#pragma GCC unroll 2
      for (int j = 0; j < kColumns; ++j) all[r][j] = multiply_add(gradient, row[j], all[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; ++j) store(sums + r * in + j * kLanes, all[r][j]);
  }
}

// G of a column of three.
PO_VECTORS [[gnu::always_inline]] inline void transform_weight(const Vector& a, const Vector& b,
                                                               const Vector& c, Vector (&to)[4]) {
  const Vector half = broadcast(0.5F);
  const Vector outer = half * (a + c), inner = half * b;
  to[0] = a;
  to[1] = outer + inner;
  to[2] = outer - inner;
  to[3] = c;
}

// G' of a column of four.
PO_VECTORS [[gnu::always_inline]] inline void gather_weight(const Vector& a, const Vector& b, const Vector& c,
                                                            const Vector& d, Vector (&to)[3]) {
  const Vector half = broadcast(0.5F);
  const Vector sum = half * (b + c);
  to[0] = a + sum;
  to[1] = half * (b - c);
  to[2] = sum + d;
}

// G g G' of a vector's input channels of one output channel, whose weights are [row][column][input].
PO_VECTORS [[gnu::always_inline]] inline void transform_kernel(const float* weights, std::int64_t in,
                                                               bool flipped, Square& points) {
  Vector columns[kKernel][4];
#pragma GCC unroll 3
  for (int j = 0; j < kKernel; ++j) {
    const auto at = [&](int i) PO_VECTORS {
      const int tap = i * 3 + j;
      return load(weights + (flipped ? 8 - tap : tap) * in);
    };
    transform_weight(at(0), at(1), at(2), columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) transform_weight(columns[0][i], columns[1][i], columns[2][i], points[i]);
}

// Where a pair of channels lies in transformed weights [point][block of output channels][inner][channel].
// Blocks have two vectors' channels, the last one those of one where there is one over.
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

PO_VECTORS void transform_forward(const float* weights, std::int64_t in, std::int64_t out,
                                  std::int64_t output, float* transformed) {
  const WeightBlocks blocks{in, out};
  const std::int64_t step = blocks.at(1, output) - blocks.at(0, output);
  for (std::int64_t c = 0; c < in; c += kLanes) {
    Square points;
    transform_kernel(weights + c, in, false, points);
    for (int p = 0; p < kPoints; ++p) {
      alignas(64) std::array<float, kLanes> values;
      store(values.data(), points[p / 4][p % 4]);
      float* const to = transformed + p * in * out + blocks.at(c, output);
      for (int lane = 0; lane < kLanes; ++lane) to[lane * step] = values[static_cast<std::size_t>(lane)];
    }
  }
}

PO_VECTORS void transform_flipped(const float* weights, std::int64_t in, std::int64_t out,
                                  std::int64_t output, float* transformed) {
  const WeightBlocks blocks{out, in};
  for (std::int64_t c = 0; c < in; c += kLanes) {
    Square points;
    transform_kernel(weights + c, in, true, points);
#pragma GCC unroll 16
    for (int p = 0; p < kPoints; ++p)
      store(transformed + p * in * out + blocks.at(output, c), points[p / 4][p % 4]);
  }
}

PO_VECTORS void convolve_tiles(const Images& from, const float* values, const Images& to,
                               const float* weights, const float* bias, float* results, std::int64_t first,
                               std::int64_t count, float* points) {
  float* const products = points + kPoints * kRoom * from.channels;
  const WeightBlocks blocks{from.channels, to.channels};
  const std::int64_t weights_step = from.channels * to.channels;
  transform_inputs(from, values, first, count, points);
  for (std::int64_t channel = 0; channel < to.channels; channel += 2 * kLanes) {
    const std::int64_t width = blocks.width(channel);
    const float* const block = weights + blocks.at(0, channel);
    if (width == kLanes) {
      multiply_points<2 * kSumRows, 1>(points, block, weights_step, from.channels, products);
    } else {
      multiply_points<kSumRows, 2>(points, block, weights_step, from.channels, products);
    }
    transform_outputs(to, products, first, count, channel, width, bias, results);
  }
}

PO_VECTORS void add_tiles(const float* points, std::int64_t in, const float* gradients, std::int64_t out,
                          std::int64_t tiles, float* sums, std::int64_t sums_step) {
  for (std::int64_t p = 0; p < kPoints;
       ++p, points += kRoom * in, gradients += kRoom * out, sums += sums_step) {
    std::int64_t c = 0;
    for (; c + 2 * kLanes <= in; c += 2 * kLanes) {
      for (std::int64_t o = 0; o < out; o += kOutputRows)
        add_products<kOutputRows, 2>(points + c, in, gradients + o, out, tiles, sums + o * in + c);
    }
    for (; c < in; c += kLanes) {
      for (std::int64_t o = 0; o < out; o += 2 * kOutputRows)
        add_products<2 * kOutputRows, 1>(points + c, in, gradients + o, out, tiles, sums + o * in + c);
    }
  }
}

// Of a vector's input channels.
PO_VECTORS [[gnu::always_inline]] inline void gather_vector(const float* sums, std::int64_t parts,
                                                            std::int64_t weights, std::int64_t in,
                                                            GradientMode mode, float* gradient) {
  Square all;
#pragma GCC unroll 16
  for (int p = 0; p < kPoints; ++p) {
    Vector sum = load(sums + p * weights);
    for (std::int64_t part = 1; part < parts; ++part) sum += load(sums + (part * kPoints + p) * weights);
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
      store(to, mode == GradientMode::kAdd ? load(to) + row[j] : row[j]);
    }
  }
}

PO_VECTORS void gather_kernel(const float* sums, std::int64_t parts, std::int64_t weights, std::int64_t in,
                              GradientMode mode, float* gradient) {
  for (std::int64_t c = 0; c < in; c += kLanes) {
    gather_vector(sums + c, parts, weights, in, mode, gradient + c);
  }
}

constexpr Code kCode = {transform_inputs, transform_gradients, transform_forward, transform_flipped,
                        convolve_tiles,   add_tiles,           gather_kernel};

}  // namespace
}  // namespace pipeoptim::host::winograd
