#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/pooling.h"
#include "layers/pooling_windows.h"
#include "layers/typed.h"
#include "layers/vendor_rows.h"

namespace pipeoptim {
namespace {

using namespace pooling;

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

// Over all lines of the tensor that the pass writes.
template <Pass kPass, typename Body>
void for_each_line(Stream& stream, const Shape& written, const Body& body) {
  for_each_row(stream, lines_of(written), line_length(written), Line<kPass, Body>{body});
}

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
    for_each_line<Pass::kForward>(
        context.stream, context.output.shape,
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
    for_each_line<Pass::kBackward>(
        context.stream, input,
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
    for_each_line<Pass::kForward>(context.stream, context.output.shape,
                                  AverageForward<T>{x, y, windows_of(options_, context.input.shape, x, y)});
  });
}
void AvgPool2d::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there() || vendor_backward(context)) return;
  const Shape& input = context.input_gradient.shape;
  with_type_of(context.output_gradient, [&]<typename T>() {
    const T* const dy = values_of<T>(context.output_gradient);
    T* const dx = values_of<T>(context.input_gradient);
    for_each_line<Pass::kBackward>(context.stream, input,
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

}  // namespace pipeoptim
