#include <cmath>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/pooling.h"
#include "layers/tiles.h"
#include "layers/typed.h"
#include "layers/vendor_rows.h"

namespace pipeoptim {
namespace {

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

template <typename T>
struct MaxForward {
  const T* x;
  T* y;
  std::int32_t* chosen;  // position of the maximum inside the record's plane
  Windows at;

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    at.each_tile<Pass::kForward>(line, *this, team);
  }
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

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    at.each_tile<Pass::kBackward>(line, *this, team);
  }
  template <int kWidth>
  PO_HD void tile(const Windows::Pixel& here, Area met, std::int64_t c) const {
    const auto position = static_cast<std::int32_t>(here.y * at.width + here.x);
    const auto add_window = [&](std::int32_t oy, std::int32_t ox, Pack<kWidth>& sum) PO_INLINED {
      const std::int64_t from = ((here.record * at.out_height + oy) * at.out_width + ox) * at.channels + c;
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

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    at.each_tile<Pass::kForward>(line, *this, team);
  }
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

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    at.each_tile<Pass::kBackward>(line, *this, team);
  }
  template <int kWidth>
  PO_HD void tile(const Windows::Pixel& here, Area met, std::int64_t c) const {
    const float share = 1.0F / static_cast<float>(at.kernel * at.kernel);
    Pack<kWidth> sum{};
    for (std::int32_t oy = met.rows.begin; oy < met.rows.end; ++oy) {
      for (std::int32_t ox = met.columns.begin; ox < met.columns.end; ++ox) {
        const std::int64_t from = ((here.record * at.out_height + oy) * at.out_width + ox) * at.channels + c;
        add<kWidth>(sum, load_tile<kWidth>(dy + from), share);
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

// Transposes each record's {rows, columns} matrix; both directions of Flatten.
template <typename T>
struct TransposeRecord {
  const T* from;
  T* to;
  std::int32_t rows, columns;

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    const std::int32_t elements = rows * columns;
    const T* in = from + record * elements;
    T* out = to + record * elements;
#if defined(__CUDA_ARCH__)
    for (std::int32_t i = team.rank(); i < elements; i += team.size())
      out[i] = in[i % rows * columns + i / rows];
#else
    static_cast<void>(team);
    for (std::int32_t r = 0; r < rows; ++r) {
      for (std::int32_t c = 0; c < columns; ++c) out[c * rows + r] = in[r * columns + c];
    }
#endif
  }
};

void transpose_records(Stream& stream, const ConstTensor& from, const Tensor& to, std::int64_t rows,
                       std::int64_t columns) {
  with_type_of(from, [&]<typename T>() {
    const T* const in = values_of<T>(from);
    T* const out = values_of<T>(to);
    if (rows == 1 || columns == 1) return stream.copy(out, in, to.bytes());
    for_each_row(
        stream, from.shape[0], rows * columns,
        TransposeRecord<T>{in, out, static_cast<std::int32_t>(rows), static_cast<std::int32_t>(columns)});
  });
}

void require_image(const Shape& input, const std::string& layer) {
  if (input.rank() == 4) return;
  throw std::invalid_argument(layer + " needs an input of records x height x width x channels, got " +
                              input.to_string());
}

void check(const PoolOptions& options, const char* layer) {
  if (options.kernel < 1 || options.stride < 1 || options.padding < 0 ||
      options.padding > options.kernel / 2) {
    throw std::invalid_argument(std::string(layer) +
                                ": kernel and stride must be positive and padding at most half of "
                                "the kernel, got kernel " +
                                std::to_string(options.kernel) + ", stride " +
                                std::to_string(options.stride) + ", padding " +
                                std::to_string(options.padding));
  }
}

// `arrays`: those that a pass reads and writes by rows of channels.
template <typename... Pointers>
Windows windows_of(const PoolOptions& options, const Shape& input, Pointers... arrays) {
  const auto out = [&](std::int64_t extent) {
    return (extent + 2 * options.padding - options.kernel) / options.stride + 1;
  };
  return {input[1],       input[2],        input[3],
          out(input[1]),  out(input[2]),   options.kernel,
          options.stride, options.padding, allow_tiles(input[3], arrays...)};
}

constexpr std::int64_t kLongestLine = std::int64_t{1} << 30;

LayerPlan pool_plan(const PoolOptions& options, const Shape& input, const std::string& layer) {
  require_image(input, layer);
  if (input[1] + 2 * options.padding < options.kernel || input[2] + 2 * options.padding < options.kernel) {
    throw std::invalid_argument(layer + ": the window is larger than the input " + input.to_string());
  }
  // Kernels count a line's tiles and pixels in 32 bits.
  if (input[1] >= kLongestLine || input[2] * input[3] >= kLongestLine)
    throw std::invalid_argument(layer + " needs lines of less than 2^30 values, got " + input.to_string());
  const Windows windows = windows_of(options, input);
  LayerPlan plan;
  plan.output = {input[0], windows.out_height, windows.out_width, input[3]};
  plan.needs = Needs::kNothing;
  plan.bytes = 2.0 * sizeof(float) * static_cast<double>(input.elements() + plan.output.elements());
  return plan;
}

std::string text(const char* kind, const PoolOptions& options) {
  return std::string(kind) + " " + std::to_string(options.kernel) + "x" + std::to_string(options.kernel) +
         ", stride " + std::to_string(options.stride);
}

std::int64_t pixels_of(const Shape& shape) { return shape[0] * shape[1] * shape[2]; }
std::int64_t lines_of(const Shape& shape) { return shape[0] * shape[1]; }
std::int64_t line_length(const Shape& shape) { return shape[2] * shape[3]; }

VendorPoolSpec vendor_spec(PoolKind kind, const PoolOptions& options, const Shape& input,
                           const Shape& output) {
  return {.kind = kind,
          .input = input,
          .output = output,
          .window = {options.kernel, options.kernel},
          .stride = {options.stride, options.stride},
          .padding = {options.padding, options.padding}};
}

}  // namespace

Pooling::Pooling() = default;
Pooling::~Pooling() = default;

ElementTypes Pooling::choose_types(ElementTypes offered) {
  const ElementTypes chosen = same_types(offered);
  type_ = chosen.input;
  return chosen;
}

void Pooling::try_vendor(Device device, VendorPoolSpec spec, LayerPlan& plan) {
  vendor_ = nullptr;
  if (kernels_ != RowKernels::kCudnn || device.backend != Backend::kCuda) return;
  spec.type = type_;
  vendor_ = detail::make_cuda_pool(device, spec);
  if (!vendor_) return;
  plan.stash_bytes = vendor_->stash_bytes();
  plan.workspace_bytes = vendor_->workspace_bytes();
}

bool Pooling::vendor_forward(const ForwardContext& context) const {
  if (!vendor_) return false;
  vendor_->forward(context.stream, context.input.memory(), context.output.memory(), context.stash,
                   context.workspace);
  return true;
}

bool Pooling::vendor_backward(const BackwardContext& context) const {
  if (!vendor_) return false;
  vendor_->backward(context.stream, context.output_gradient.memory(), context.input_gradient.memory(),
                    context.stash, context.workspace);
  return true;
}

MaxPool2d::MaxPool2d(PoolOptions options) : options_(options) { check(options, "max pool"); }
std::string MaxPool2d::describe() const { return text("max pool", options_); }
LayerPlan MaxPool2d::plan(Device device, int, const Shape& input) {
  LayerPlan plan = pool_plan(options_, input, describe());
  plan.stash_bytes = static_cast<std::size_t>(plan.output.elements()) * sizeof(std::int32_t);
  try_vendor(device, vendor_spec(PoolKind::kMaximum, options_, input, plan.output), plan);
  return plan;
}
void MaxPool2d::forward(const ForwardContext& context) const {
  if (vendor_forward(context)) return;
  with_type_of(context.input, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    T* const y = values_of<T>(context.output);
    for_each_row(context.stream, lines_of(context.output.shape), line_length(context.output.shape),
                 MaxForward<T>{x, y, reinterpret_cast<std::int32_t*>(context.stash),
                               windows_of(options_, context.input.shape, x, y, context.stash)});
  });
}
void MaxPool2d::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there() || vendor_backward(context)) return;
  const Shape& input = context.input_gradient.shape;
  with_type_of(context.output_gradient, [&]<typename T>() {
    const T* const dy = values_of<T>(context.output_gradient);
    T* const dx = values_of<T>(context.input_gradient);
    for_each_row(context.stream, lines_of(input), line_length(input),
                 MaxBackward<T>{dy, dx, reinterpret_cast<const std::int32_t*>(context.stash),
                                windows_of(options_, input, dy, dx, context.stash)});
  });
}

AvgPool2d::AvgPool2d(PoolOptions options) : options_(options) { check(options, "average pool"); }
std::string AvgPool2d::describe() const { return text("average pool", options_); }
LayerPlan AvgPool2d::plan(Device device, int, const Shape& input) {
  LayerPlan plan = pool_plan(options_, input, describe());
  try_vendor(device, vendor_spec(PoolKind::kMean, options_, input, plan.output), plan);
  return plan;
}
void AvgPool2d::forward(const ForwardContext& context) const {
  if (vendor_forward(context)) return;
  with_type_of(context.input, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    T* const y = values_of<T>(context.output);
    for_each_row(context.stream, lines_of(context.output.shape), line_length(context.output.shape),
                 AverageForward<T>{x, y, windows_of(options_, context.input.shape, x, y)});
  });
}
void AvgPool2d::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there() || vendor_backward(context)) return;
  const Shape& input = context.input_gradient.shape;
  with_type_of(context.output_gradient, [&]<typename T>() {
    const T* const dy = values_of<T>(context.output_gradient);
    T* const dx = values_of<T>(context.input_gradient);
    for_each_row(context.stream, lines_of(input), line_length(input),
                 AverageBackward<T>{dy, dx, windows_of(options_, input, dy, dx)});
  });
}

LayerPlan GlobalAvgPool::plan(Device device, int, const Shape& input) {
  require_image(input, describe());
  LayerPlan plan;
  plan.output = {input[0], input[3]};
  plan.needs = Needs::kNothing;
  plan.bytes = 2.0 * sizeof(float) * static_cast<double>(input.elements());
  try_vendor(device,
             {.kind = PoolKind::kMean,
              .input = input,
              .output = {input[0], 1, 1, input[3]},
              .window = {input[1], input[2]},
              .stride = {1, 1}},
             plan);
  return plan;
}
void GlobalAvgPool::forward(const ForwardContext& context) const {
  if (vendor_forward(context)) return;
  const Shape& input = context.input.shape;
  with_type_of(context.input, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    T* const y = values_of<T>(context.output);
    for_each_row(context.stream, input[0], input[3],
                 GlobalForward<T>{x, y, input[1] * input[2], input[3], allow_tiles(input[3], x, y)});
  });
}
void GlobalAvgPool::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there() || vendor_backward(context)) return;
  const Shape& input = context.input_gradient.shape;
  with_type_of(context.output_gradient, [&]<typename T>() {
    const T* const dy = values_of<T>(context.output_gradient);
    T* const dx = values_of<T>(context.input_gradient);
    for_each_row(context.stream, pixels_of(input), input[3],
                 GlobalBackward<T>{dy, dx, input[1] * input[2], input[3], allow_tiles(input[3], dy, dx)});
  });
}

LayerPlan Flatten::plan(Device, int, const Shape& input) {
  constexpr std::int64_t kMostValues = std::int64_t{1} << 30;
  if (input.rank() < 2 || input.elements() / input[0] > kMostValues)
    throw std::invalid_argument("flatten needs records of at most 2^30 values, got " + input.to_string());
  LayerPlan plan;
  plan.output = {input[0], input.elements() / input[0]};
  plan.needs = Needs::kNothing;
  plan.bytes = 4.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}
void Flatten::forward(const ForwardContext& context) const {
  const std::int64_t channels = context.input.shape.last();
  transpose_records(context.stream, context.input, context.output, context.output.shape[1] / channels,
                    channels);
}
void Flatten::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there()) return;
  const Shape& input = context.input_gradient.shape;
  transpose_records(context.stream, context.output_gradient, context.input_gradient, input.last(),
                    input.elements() / input[0] / input.last());
}

}  // namespace pipeoptim
