// The kernels of pooling: a window's values to one, and back. A body writes whole lines of pixels.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include pooling_windows.h only from .cu files"
#endif

#include <cmath>
#include <cstdint>

#include "layers/tiles.h"

namespace pipeoptim::pooling {

enum class Pass { kForward, kBackward };

// Of pixels. Lines are shorter than 2^31.
struct Span {
  std::int32_t begin, end;
};
struct Area {
  Span rows, columns;
};

// Extents of a window pass; a "row" of the launches is one line of pixels with all their channels.
struct Windows {
  std::int64_t height, width, channels, out_height, out_width;
  std::int64_t kernel, stride, padding;
  bool packs;

  struct Pixel {
    std::int64_t record, y, x, index;  // index: among all pixels of the tensor
  };
  // Calls body.tile<kWidth>(pixel, area of the other tensor that it meets, first channel) for each pixel of a
  // line that the pass writes, and the team's share of its channels.
  template <Pass kPass, typename Body, typename Team>
  PO_HD void each_tile(std::int64_t line, const Body& body, const Team& team) const {
    constexpr bool kForward = kPass == Pass::kForward;
    const std::int64_t down = kForward ? out_height : height, across = kForward ? out_width : width;
    const std::int64_t record = line / down, y = line % down, first = line * across;
    const std::int64_t other_height = kForward ? height : out_height;
    const std::int64_t other_width = kForward ? width : out_width;
#if defined(__CUDA_ARCH__)
    // The tiles of all pixels, one after the other, so that few channels do not leave members idle.
    const auto share = [&]<int kWidth>() PO_INLINED {
      const auto tiles = static_cast<int>(channels / kWidth), all = static_cast<int>(across) * tiles;
      PO_UNROLL(1)
      for (int i = team.rank(); i < all; i += team.size()) {
        const int x = i / tiles;
        body.template tile<kWidth>(Pixel{record, y, x, first + x},
                                   Area{reach<kPass>(y, other_height), reach<kPass>(x, other_width)},
                                   kWidth * (i - x * tiles));
      }
    };
    packs ? share.template operator()<4>() : share.template operator()<1>();
#else
    const Span rows = reach<kPass>(y, other_height);
    for (std::int64_t x = 0; x < across; ++x) {
      const Area met{rows, reach<kPass>(x, other_width)};
      for_each_tile(team, channels, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
        body.template tile<kWidth>(Pixel{record, y, x, first + x}, met, c);
      });
    }
#endif
  }
  // Where the channels of an output pixel begin.
  PO_HD std::int64_t output(std::int64_t record, std::int32_t y, std::int32_t x) const {
    return ((record * out_height + y) * out_width + x) * channels;
  }
  PO_HD static std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
  PO_HD static std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
  // The positions in the window of output position `at`, inside [0, extent), or the output positions whose
  // windows hold input position `at`. Divisions of 64 bits would take many registers.
  template <Pass kPass>
  PO_HD Span reach(std::int64_t at, std::int64_t extent) const {
    const auto all = static_cast<std::int32_t>(extent);
    if constexpr (kPass == Pass::kForward) {
      const auto from = static_cast<std::int32_t>(at * stride - padding);
      return {larger(from, 0), smaller(from + static_cast<std::int32_t>(kernel), all)};
    } else {
      const auto from = static_cast<std::int32_t>(at + padding - kernel + 1),
                 last = static_cast<std::int32_t>(at + padding), step = static_cast<std::int32_t>(stride);
      return {from <= 0 ? 0 : (from + step - 1) / step, smaller(last / step + 1, all)};
    }
  }
};

// A line of a pass: the tiles of `body`, which has its windows as `at`.
template <Pass kPass, typename Body>
struct Line {
  Body body;

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    body.at.template each_tile<kPass>(line, body, team);
  }
};

template <typename T>
struct MaxForward {
  const T* x;
  T* y;
  std::int32_t* chosen;  // position of the maximum inside the record's plane
  Windows at;

  template <int kWidth>
  PO_HD void tile(const Windows::Pixel& here, Area met, std::int64_t c) const {
    const T* plane = x + here.record * at.height * at.width * at.channels + c;
    Pack<kWidth> best;
    Pack<kWidth, std::int32_t> where;
    PO_SIMD
    for (int v = 0; v < kWidth; ++v) {
      best.value[v] = -INFINITY;
      where.value[v] = static_cast<std::int32_t>(met.rows.begin * at.width + met.columns.begin);
    }
    for (std::int32_t iy = met.rows.begin; iy < met.rows.end; ++iy) {
      for (std::int32_t ix = met.columns.begin; ix < met.columns.end; ++ix) {
        const auto position = static_cast<std::int32_t>(iy * at.width + ix);
        const auto in = load_tile<kWidth>(plane + position * at.channels);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) {
          const float value = in.value[v];
          // A NaN wins, as in PyTorch.
          const bool better = static_cast<int>(value > best.value[v]) | static_cast<int>(value != value);
          where.value[v] = better ? position : where.value[v];
          best.value[v] = better ? value : best.value[v];
        }
      }
    }
    store_tile(y + here.index * at.channels + c, best);
    store_tile(chosen + here.index * at.channels + c, where);
  }
};

// Gathers, so that no two teams write one place.
template <typename T>
struct MaxBackward {
  const T* dy;
  T* dx;
  const std::int32_t* chosen;
  Windows at;

  template <int kWidth>
  PO_HD void tile(const Windows::Pixel& here, Area met, std::int64_t c) const {
    const auto position = static_cast<std::int32_t>(here.y * at.width + here.x);
    const auto add_window = [&](std::int32_t oy, std::int32_t ox, Pack<kWidth>& sum) PO_INLINED {
      const std::int64_t from = at.output(here.record, oy, ox) + c;
      const auto where = load_tile<kWidth>(chosen + from);
      const auto gradient = load_tile<kWidth>(dy + from);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        sum.value[v] += where.value[v] == position ? gradient.value[v] : 0.0F;
      }
    };
    Pack<kWidth> sum{};
#if !defined(__CUDA_ARCH__)
    // Most often so; without a loop the sum stays in registers.
    if (met.rows.end - met.rows.begin == 1 && met.columns.end - met.columns.begin == 1) {
      add_window(met.rows.begin, met.columns.begin, sum);
      return store_tile(dx + here.index * at.channels + c, sum);
    }
#endif
    for (std::int32_t oy = met.rows.begin; oy < met.rows.end; ++oy) {
      for (std::int32_t ox = met.columns.begin; ox < met.columns.end; ++ox) add_window(oy, ox, sum);
    }
    store_tile(dx + here.index * at.channels + c, sum);
  }
};

template <int kWidth, typename Values>
PO_HD void add(Pack<kWidth>& to, const Values& from, float factor) {
  PO_SIMD
  for (int v = 0; v < kWidth; ++v) to.value[v] += from.value[v] * factor;
}
template <int kWidth, typename Values>
PO_HD Pack<kWidth> scaled(const Values& from, float factor) {
  Pack<kWidth> out;
  PO_SIMD
  for (int v = 0; v < kWidth; ++v) out.value[v] = from.value[v] * factor;
  return out;
}

template <typename T>
struct AverageForward {
  const T* x;
  T* y;
  Windows at;

  template <int kWidth>
  PO_HD void tile(const Windows::Pixel& here, Area met, std::int64_t c) const {
    const T* plane = x + here.record * at.height * at.width * at.channels + c;
    Pack<kWidth> sum{};
    for (std::int32_t iy = met.rows.begin; iy < met.rows.end; ++iy) {
      for (std::int32_t ix = met.columns.begin; ix < met.columns.end; ++ix) {
        add<kWidth>(sum, load_tile<kWidth>(plane + (iy * at.width + ix) * at.channels), 1);
      }
    }
    const float share = 1.0F / static_cast<float>(at.kernel * at.kernel);
    store_tile(y + here.index * at.channels + c, scaled<kWidth>(sum, share));
  }
};

template <typename T>
struct AverageBackward {
  const T* dy;
  T* dx;
  Windows at;

  template <int kWidth>
  PO_HD void tile(const Windows::Pixel& here, Area met, std::int64_t c) const {
    const float share = 1.0F / static_cast<float>(at.kernel * at.kernel);
    Pack<kWidth> sum{};
    for (std::int32_t oy = met.rows.begin; oy < met.rows.end; ++oy) {
      for (std::int32_t ox = met.columns.begin; ox < met.columns.end; ++ox) {
        add<kWidth>(sum, load_tile<kWidth>(dy + at.output(here.record, oy, ox) + c), share);
      }
    }
    store_tile(dx + here.index * at.channels + c, sum);
  }
};

template <typename T>
struct GlobalForward {
  using LongRows = void;
  const T* x;
  T* y;
  std::int64_t pixels, channels;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    sum_columns(team, row_slab(record, pixels, (record + 1) * pixels, channels), x, channels, packs,
                [&]<int kWidth>(std::int64_t c, const Sums<1>::Of<kWidth>& all) PO_INLINED {
                  store_tile(y + record * channels + c,
                             scaled<kWidth>(all.sum[0], 1.0F / static_cast<float>(pixels)));
                });
  }
};

template <typename T>
struct GlobalBackward {
  const T* dy;
  T* dx;
  std::int64_t pixels, channels;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    for_each_tile(team, channels, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto gradient = load_tile<kWidth>(dy + row / pixels * channels + c);
      store_tile(dx + row * channels + c, scaled<kWidth>(gradient, 1.0F / static_cast<float>(pixels)));
    });
  }
};

}  // namespace pipeoptim::pooling
