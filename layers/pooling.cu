#include <stdexcept>

#include "kernels/runtime/launch.h"
#include "layers/pooling.h"

namespace pipeoptim {
namespace {

// Extents of a window pass; a "row" of the launches is one line of pixels with all their channels.
struct Windows {
  std::int64_t height, width, channels, out_height, out_width;
  std::int64_t kernel, stride, padding;

  struct Pixel {
    std::int64_t record, y, x, index;  // index: among all pixels of the tensor
  };
  // Calls body.pixel(pixel, team) for each pixel of a line of `across` pixels, `down` lines a record.
  template <typename Body, typename Team>
  PO_HD static void each_pixel(std::int64_t line, std::int64_t down, std::int64_t across, const Body& body,
                               const Team& team) {
    Pixel pixel{line / down, line % down, 0, line * across};
    for (; pixel.x < across; ++pixel.x, ++pixel.index) body.pixel(pixel, team);
  }
  PO_HD static std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
  PO_HD static std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
  // First and one past the last input position of output position `at`, inside [0, extent).
  PO_HD std::int64_t begin(std::int64_t at) const { return larger(at * stride - padding, 0); }
  PO_HD std::int64_t end(std::int64_t at, std::int64_t extent) const {
    return smaller(at * stride - padding + kernel, extent);
  }
  // The output positions whose windows hold input position `at`.
  PO_HD std::int64_t first_window(std::int64_t at) const {
    const std::int64_t from = at + padding - kernel + 1;
    return from <= 0 ? 0 : (from + stride - 1) / stride;
  }
  PO_HD std::int64_t last_window(std::int64_t at, std::int64_t out_extent) const {
    return smaller((at + padding) / stride, out_extent - 1);
  }
};

struct MaxForward {
  const float* x;
  float* y;
  std::int32_t* chosen;  // position of the maximum inside the record's plane
  Windows at;

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    Windows::each_pixel(line, at.out_height, at.out_width, *this, team);
  }
  template <typename Team>
  PO_HD void pixel(const Windows::Pixel& here, const Team& team) const {
    const float* plane = x + here.record * at.height * at.width * at.channels;
    float* out = y + here.index * at.channels;
    std::int32_t* where = chosen + here.index * at.channels;
    bool first = true;
    for (std::int64_t iy = at.begin(here.y); iy < at.end(here.y, at.height); ++iy) {
      for (std::int64_t ix = at.begin(here.x); ix < at.end(here.x, at.width); ++ix) {
        const auto position = static_cast<std::int32_t>(iy * at.width + ix);
        const float* in = plane + position * at.channels;
        for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) {
          const bool better = first || in[c] > out[c] || in[c] != in[c];  // a NaN wins, as in PyTorch
          where[c] = better ? position : where[c];
          out[c] = better ? in[c] : out[c];
        }
        first = false;
      }
    }
  }
};

// Gathers, so that no two teams write one place.
struct MaxBackward {
  const float* dy;
  float* dx;
  const std::int32_t* chosen;
  Windows at;

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    Windows::each_pixel(line, at.height, at.width, *this, team);
  }
  template <typename Team>
  PO_HD void pixel(const Windows::Pixel& here, const Team& team) const {
    const auto position = static_cast<std::int32_t>(here.y * at.width + here.x);
    float* out = dx + here.index * at.channels;
    for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) out[c] = 0;
    for (std::int64_t oy = at.first_window(here.y); oy <= at.last_window(here.y, at.out_height); ++oy) {
      for (std::int64_t ox = at.first_window(here.x); ox <= at.last_window(here.x, at.out_width); ++ox) {
        const std::int64_t from = ((here.record * at.out_height + oy) * at.out_width + ox) * at.channels;
        for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) {
          out[c] += chosen[from + c] == position ? dy[from + c] : 0.0F;
        }
      }
    }
  }
};

struct AverageForward {
  const float* x;
  float* y;
  Windows at;

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    Windows::each_pixel(line, at.out_height, at.out_width, *this, team);
  }
  template <typename Team>
  PO_HD void pixel(const Windows::Pixel& here, const Team& team) const {
    const float* plane = x + here.record * at.height * at.width * at.channels;
    float* out = y + here.index * at.channels;
    const float share = 1.0F / static_cast<float>(at.kernel * at.kernel);
    for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) out[c] = 0;
    for (std::int64_t iy = at.begin(here.y); iy < at.end(here.y, at.height); ++iy) {
      for (std::int64_t ix = at.begin(here.x); ix < at.end(here.x, at.width); ++ix) {
        const float* in = plane + (iy * at.width + ix) * at.channels;
        for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) out[c] += in[c];
      }
    }
    for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) out[c] *= share;
  }
};

struct AverageBackward {
  const float* dy;
  float* dx;
  Windows at;

  template <typename Team>
  PO_HD void operator()(std::int64_t line, const Team& team) const {
    Windows::each_pixel(line, at.height, at.width, *this, team);
  }
  template <typename Team>
  PO_HD void pixel(const Windows::Pixel& here, const Team& team) const {
    float* out = dx + here.index * at.channels;
    const float share = 1.0F / static_cast<float>(at.kernel * at.kernel);
    for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) out[c] = 0;
    for (std::int64_t oy = at.first_window(here.y); oy <= at.last_window(here.y, at.out_height); ++oy) {
      for (std::int64_t ox = at.first_window(here.x); ox <= at.last_window(here.x, at.out_width); ++ox) {
        const float* in = dy + ((here.record * at.out_height + oy) * at.out_width + ox) * at.channels;
        for (std::int64_t c = team.rank(); c < at.channels; c += team.size()) out[c] += in[c] * share;
      }
    }
  }
};

struct GlobalForward {
  const float* x;
  float* y;
  std::int64_t pixels, channels;

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    float* out = y + record * channels;
    const float share = 1.0F / static_cast<float>(pixels);
    for (std::int64_t c = team.rank(); c < channels; c += team.size()) out[c] = 0;
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
      const float* in = x + (record * pixels + pixel) * channels;
      for (std::int64_t c = team.rank(); c < channels; c += team.size()) out[c] += in[c];
    }
    for (std::int64_t c = team.rank(); c < channels; c += team.size()) out[c] *= share;
  }
};

struct GlobalBackward {
  const float* dy;
  float* dx;
  std::int64_t pixels, channels;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const float* in = dy + row / pixels * channels;
    float* out = dx + row * channels;
    const float share = 1.0F / static_cast<float>(pixels);
    for (std::int64_t c = team.rank(); c < channels; c += team.size()) out[c] = in[c] * share;
  }
};

// Transposes each record's {rows, columns} matrix; both directions of Flatten.
struct TransposeRecord {
  const float* from;
  float* to;
  std::int64_t rows, columns;

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    const float* in = from + record * rows * columns;
    float* out = to + record * rows * columns;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = team.rank(); c < columns; c += team.size())
        out[c * rows + r] = in[r * columns + c];
    }
  }
};

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

Windows windows_of(const PoolOptions& options, const Shape& input) {
  const auto out = [&](std::int64_t extent) {
    return (extent + 2 * options.padding - options.kernel) / options.stride + 1;
  };
  return {input[1],      input[2],       input[3],       out(input[1]),
          out(input[2]), options.kernel, options.stride, options.padding};
}

LayerPlan pool_plan(const PoolOptions& options, const Shape& input, const std::string& layer) {
  require_image(input, layer);
  if (input[1] + 2 * options.padding < options.kernel || input[2] + 2 * options.padding < options.kernel) {
    throw std::invalid_argument(layer + ": the window is larger than the input " + input.to_string());
  }
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

}  // namespace

MaxPool2d::MaxPool2d(PoolOptions options) : options_(options) { check(options, "max pool"); }
std::string MaxPool2d::describe() const { return text("max pool", options_); }
LayerPlan MaxPool2d::plan(Device, int, const Shape& input) {
  LayerPlan plan = pool_plan(options_, input, describe());
  plan.stash_bytes = static_cast<std::size_t>(plan.output.elements()) * sizeof(std::int32_t);
  return plan;
}
void MaxPool2d::forward(const ForwardContext& context) const {
  for_each_row(
      context.stream, lines_of(context.output.shape), line_length(context.output.shape),
      MaxForward{context.input.data, context.output.data, reinterpret_cast<std::int32_t*>(context.stash),
                 windows_of(options_, context.input.shape)});
}
void MaxPool2d::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  const Shape& input = context.input_gradient.shape;
  for_each_row(
      context.stream, lines_of(input), line_length(input),
      MaxBackward{context.output_gradient.data, context.input_gradient.data,
                  reinterpret_cast<const std::int32_t*>(context.stash), windows_of(options_, input)});
}

AvgPool2d::AvgPool2d(PoolOptions options) : options_(options) { check(options, "average pool"); }
std::string AvgPool2d::describe() const { return text("average pool", options_); }
LayerPlan AvgPool2d::plan(Device, int, const Shape& input) { return pool_plan(options_, input, describe()); }
void AvgPool2d::forward(const ForwardContext& context) const {
  for_each_row(
      context.stream, lines_of(context.output.shape), line_length(context.output.shape),
      AverageForward{context.input.data, context.output.data, windows_of(options_, context.input.shape)});
}
void AvgPool2d::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  const Shape& input = context.input_gradient.shape;
  for_each_row(context.stream, lines_of(input), line_length(input),
               AverageBackward{context.output_gradient.data, context.input_gradient.data,
                               windows_of(options_, input)});
}

LayerPlan GlobalAvgPool::plan(Device, int, const Shape& input) {
  require_image(input, describe());
  LayerPlan plan;
  plan.output = {input[0], input[3]};
  plan.needs = Needs::kNothing;
  plan.bytes = 2.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}
void GlobalAvgPool::forward(const ForwardContext& context) const {
  const Shape& input = context.input.shape;
  for_each_row(context.stream, input[0], input[3],
               GlobalForward{context.input.data, context.output.data, input[1] * input[2], input[3]});
}
void GlobalAvgPool::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  const Shape& input = context.input_gradient.shape;
  for_each_row(context.stream, pixels_of(input), input[3],
               GlobalBackward{context.output_gradient.data, context.input_gradient.data, input[1] * input[2],
                              input[3]});
}

LayerPlan Flatten::plan(Device, int, const Shape& input) {
  if (input.rank() < 2)
    throw std::invalid_argument("flatten needs records of values, got " + input.to_string());
  LayerPlan plan;
  plan.output = {input[0], input.elements() / input[0]};
  plan.needs = Needs::kNothing;
  plan.bytes = 4.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}
void Flatten::forward(const ForwardContext& context) const {
  const std::int64_t records = context.input.shape[0];
  const std::int64_t channels = context.input.shape.last();
  for_each_row(
      context.stream, records, context.output.shape[1],
      TransposeRecord{context.input.data, context.output.data, context.output.shape[1] / channels, channels});
}
void Flatten::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  const Shape& input = context.input_gradient.shape;
  const std::int64_t each = input.elements() / input[0];
  for_each_row(context.stream, input[0], each,
               TransposeRecord{context.output_gradient.data, context.input_gradient.data, input.last(),
                               each / input.last()});
}

}  // namespace pipeoptim
