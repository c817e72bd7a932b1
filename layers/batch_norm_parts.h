// What batch norm's own kernels and those around cuDNN's share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "layers/layer.h"
#include "layers/tiles.h"
#include "layers/vendor_rows.h"

namespace pipeoptim::batch_norm {

// Rows that one team sums: on the host 16 KiB at 16 channels, in the first-level cache, on CUDA 4 tiles a
// thread.
inline std::int64_t chunk_rows(Device device, std::int64_t channels) {
  constexpr std::int64_t kHostRows = 256, kDeviceElements = 4096;
  return device.backend == Backend::kHost ? kHostRows : std::max<std::int64_t>(1, kDeviceElements / channels);
}

// A matrix of rows of channels, cut into chunks of rows.
struct Chunks {
  std::int64_t rows, channels;
  std::int64_t length;  // rows of a chunk

  Chunks(Device device, std::int64_t elements, std::int64_t in_channels)
      : rows(elements / in_channels), channels(in_channels), length(chunk_rows(device, in_channels)) {}
  PO_HD std::int64_t count() const { return (rows + length - 1) / length; }
  PO_HD std::int64_t rows_of(std::int64_t index) const {
    const Slab chunk = slab(index);
    return chunk.row_end - chunk.row_begin;
  }
  PO_HD Slab slab(std::int64_t index) const { return row_slab(index, length, rows, channels); }
};

// Per-channel vectors in the stash, one after the other.
struct Vectors {
  float *scale, *shift;       // forward: y = scale x + shift
  float *mean, *rstd;         // of the micro-batch
  float *sum, *product;       // sum of g, and of g xhat: the gradients of bias and weight
  float *of_g, *of_x, *rest;  // backward: dx = of_g g + of_x x + rest
  static constexpr int kCount = 9;

  Vectors(std::byte* stash, std::int64_t channels) {
    float* next = reinterpret_cast<float*>(stash);
    for (float** vector : {&scale, &shift, &mean, &rstd, &sum, &product, &of_g, &of_x, &rest}) {
      *vector = next;
      next += channels;
    }
  }
};

inline Chunks chunks_of(const Stream& stream, const ConstTensor& input) {
  return {stream.device(), input.elements(), input.shape.last()};
}

// The gradient behind the activation, from that in front of it.
template <Activation kActivation>
PO_HD float behind(float gradient, float x, float scale, float shift) {
  const bool off = kActivation == Activation::kRelu && !(x * scale + shift > 0);
  return off ? 0.0F : gradient;
}

// to <- map(g, x) of a chunk of rows, g the gradient behind the activation. A map is made for each tile of
// channels, and called with the number of a channel in it.
template <Activation kActivation, typename T, template <int> typename Map>
struct MapGradient {
  using LongRows = void;
  const T* x;
  const T* dy;
  T* to;
  Vectors from;
  Chunks chunks;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const std::int64_t channels = chunks.channels;
    const auto body = [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
      const auto scale = load_tile<kWidth>(from.scale + c), shift = load_tile<kWidth>(from.shift + c);
      const Map<kWidth> map(from, c);
      for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        const auto gradient = load_tile<kWidth>(dy + r * channels + c);
        Pack<kWidth> out;
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) {
          const float g =
              behind<kActivation>(gradient.value[v], row.value[v], scale.value[v], shift.value[v]);
          out.value[v] = map(v, g, row.value[v]);
        }
        store_tile(to + r * channels + c, out);
      }
    };
    for_each_tile_of_rows(team, chunks.slab(index), packs, body);
  }
};

// Training's forward and backward in cuDNN's hands (batch_norm_vendor.cu), with our vectors in the stash. The
// backward has an input gradient to write.
void forward_by(const VendorNorm& norm, const ForwardContext& context, const Vectors& vectors);
void backward_by(const VendorNorm& norm, const BackwardContext& context, Activation activation,
                 const Vectors& vectors);
// Bytes of workspace of the two.
std::size_t vendor_workspace(const VendorNorm& norm, const VendorNormSpec& spec);

}  // namespace pipeoptim::batch_norm
