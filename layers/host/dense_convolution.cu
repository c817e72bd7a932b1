#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/host/dense_convolution.h"
#include "layers/host/weight_gradient.h"
#include "layers/rounding.h"
#include "layers/tiles.h"
#include "layers/typed.h"

namespace pipeoptim::host {
namespace {

// Pixels that meet, and where their weights lie: in the arena [out, tap, in], in the matrix [output pixel,
// out, input pixel, in].
struct Meetings {
  std::int64_t rows, columns, in;
  std::int64_t out_rows, out_columns, out;
  std::int64_t kernel, stride, padding, dilation;

  explicit Meetings(const ConvolutionSpec& spec) {
    const Shape output = convolution_output(spec);
    rows = spec.input[1], columns = spec.input[2], in = spec.input[3];
    out_rows = output[1], out_columns = output[2], out = output[3];
    kernel = spec.kernel, stride = spec.stride, padding = spec.padding, dilation = spec.dilation;
  }
  PO_HD std::int64_t pixels() const { return rows * columns; }
  PO_HD std::int64_t out_pixels() const { return out_rows * out_columns; }
  PO_HD std::int64_t taps() const { return kernel * kernel; }
  std::int64_t dense_weights() const { return out_pixels() * out * pixels() * in; }

  // The input pixel that an output pixel meets through a tap; -1 outside of the image.
  PO_HD std::int64_t pixel(std::int64_t out_pixel, std::int64_t tap) const {
    const std::int64_t row = out_pixel / out_columns * stride - padding + tap / kernel * dilation;
    const std::int64_t column = out_pixel % out_columns * stride - padding + tap % kernel * dilation;
    const bool inside = row >= 0 && row < rows && column >= 0 && column < columns;
    return inside ? row * columns + column : -1;
  }
  // The tap through which they meet; -1 where there is none.
  PO_HD std::int64_t tap(std::int64_t out_pixel, std::int64_t in_pixel) const {
    for (std::int64_t tap = 0; tap < taps(); ++tap) {
      if (pixel(out_pixel, tap) == in_pixel) return tap;
    }
    return -1;
  }
};

// A row: all input channels of an output channel and pixel, and an input pixel. Rows that follow each other
// read the same weights.
template <typename From, typename To>
struct SpreadWeights {
  Meetings meetings;
  const From* weights;
  To* dense;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const Meetings& m = meetings;
    const std::int64_t in_pixel = row % m.pixels(), out_pixel = row / m.pixels() % m.out_pixels();
    const std::int64_t output = row / (m.pixels() * m.out_pixels()), tap = m.tap(out_pixel, in_pixel);
    To* const to = dense + ((out_pixel * m.out + output) * m.pixels() + in_pixel) * m.in;
    for_each_tile(team, m.in, true, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      Pack<kWidth> values{};
      if (tap >= 0) {
        const auto tile = load_tile<kWidth>(weights + (output * m.taps() + tap) * m.in + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) values.value[v] = tile.value[v];
      }
      store_tile(to + c, values);
    });
  }
};

struct SpreadBias {
  const float* bias;
  float* dense;
  std::int64_t out;
  PO_HD void operator()(std::int64_t i) const { dense[i] = bias[i % out]; }
};

// A row: all input channels of an output channel and a tap.
struct GatherGradient {
  Meetings meetings;
  const float* dense;
  float* gradient;
  bool adds;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const Meetings& m = meetings;
    const std::int64_t tap = row % m.taps(), output = row / m.taps();
    float* const to = gradient + row * m.in;
    for_each_tile(team, m.in, true, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      Sums<1>::Of<kWidth> all{};
      for (std::int64_t out_pixel = 0; out_pixel < m.out_pixels(); ++out_pixel) {
        const std::int64_t in_pixel = m.pixel(out_pixel, tap);
        if (in_pixel < 0) continue;
        const auto tile =
            load_tile<kWidth>(dense + ((out_pixel * m.out + output) * m.pixels() + in_pixel) * m.in + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) all.sum[0].value[v] += tile.value[v];
      }
      if (adds) {
        const auto before = load_tile<kWidth>(to + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) all.sum[0].value[v] += before.value[v];
      }
      store_tile(to + c, all.sum[0]);
    });
  }
};

class DenseConvolution final : public ConvolutionPlan {
 public:
  DenseConvolution(int threads, const ConvolutionSpec& spec)
      : meetings_(spec), bias_(spec.bias), rounds_(spec.precision == MatrixPrecision::kBf16) {
    const Meetings& m = meetings_;
    product_ = make_linear(Device::host(), threads,
                           {.rows = spec.input[0],
                            .in = m.pixels() * m.in,
                            .out = m.out_pixels() * m.out,
                            .bias = spec.bias ? Bias::kYes : Bias::kNo,
                            .precision = spec.precision,
                            .types = spec.types});
    constexpr ElementTypes kRounded{ElementType::kBf16, ElementType::kBf16};
    if (spec.types == kRounded && PairedWeightGradient::handles(threads, spec)) {
      gradient_.emplace(threads, spec);
    }
    ArenaPlan workspace;
    workspace.reserve(
        std::max(product_->workspace_bytes(), gradient_ ? gradient_->workspace_bytes() : std::size_t{0}));
    const auto weights = static_cast<std::size_t>(m.dense_weights());
    // One direction at a time: the gradient lies where the weights do.
    dense_ = workspace.reserve(weights * sizeof(float));
    dense_bias_ = workspace.reserve(float_bytes(bias_ ? m.out_pixels() * m.out : 0));
    workspace_bytes_ = workspace.bytes();
  }

  std::size_t workspace_bytes() const override { return workspace_bytes_; }

  void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const override {
    if ((operands.bias != nullptr) != bias_) {
      throw std::invalid_argument("convolution: the plan and the call disagree about a bias");
    }
    const Meetings& m = meetings_;
    float* const bias = dense_bias(workspace);
    if (bias_) host::for_each(stream, m.out_pixels() * m.out, SpreadBias{operands.bias, bias, m.out});
    product_->forward(stream,
                      {.input = operands.input,
                       .weights = spread(stream, operands.weights, workspace),
                       .bias = bias,
                       .output = operands.output},
                      workspace);
  }

  void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                     std::byte* workspace) const override {
    product_->backward_input(stream,
                             {.weights = spread(stream, operands.weights, workspace),
                              .output_gradient = operands.output_gradient,
                              .input_gradient = operands.input_gradient},
                             workspace);
  }

  void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                        std::byte* workspace) const override {
    if (gradient_) {
      return gradient_->run(stream, operands.input.rounded, operands.output_gradient.rounded,
                            operands.weight_gradient, operands.mode, workspace);
    }
    auto* const dense = reinterpret_cast<float*>(workspace + dense_);
    product_->backward_weights(stream,
                               {.input = operands.input,
                                .output_gradient = operands.output_gradient,
                                .weight_gradient = dense,
                                .bias_gradient = dense_bias(workspace),  // which nobody asks for
                                .workspace = operands.workspace},
                               workspace);
    const Meetings& m = meetings_;
    host::for_each_row(
        stream, m.out * m.taps(),
        GatherGradient{m, dense, operands.weight_gradient, operands.mode == GradientMode::kAdd});
  }

 private:
  float* dense_bias(std::byte* workspace) const {
    return bias_ ? reinterpret_cast<float*>(workspace + dense_bias_) : nullptr;
  }
  // The weights as a matrix, in the type of the products.
  Factor spread(Stream& stream, const Factor& weights, std::byte* workspace) const {
    Factor dense;
    if (rounds_) {
      with_type_of(weights, [&]<typename From>() {
        dense.rounded = spread<From, Bf16>(stream, values_of<From>(weights), workspace);
      });
    } else {
      dense.values = spread<float, float>(stream, fp32_values(weights), workspace);
    }
    return dense;
  }
  template <typename From, typename To>
  const To* spread(Stream& stream, const From* from, std::byte* workspace) const {
    const Meetings& m = meetings_;
    auto* const to = reinterpret_cast<To*>(workspace + dense_);
    host::for_each_row(stream, m.out_pixels() * m.out * m.pixels(), SpreadWeights<From, To>{m, from, to});
    return to;
  }

  Meetings meetings_;
  bool bias_, rounds_;
  std::unique_ptr<LinearPlan> product_;
  // Makes no more products, and needs no gradient of the matrix.
  std::optional<PairedWeightGradient> gradient_;
  std::size_t dense_ = 0, dense_bias_ = 0, workspace_bytes_ = 0;  // offsets in bytes
};

}  // namespace

bool suits_dense_convolution(const ConvolutionSpec& spec) {
  const Meetings m(spec);
  return spec.groups == 1 && m.pixels() <= m.taps() && m.pixels() * m.out_pixels() <= 2 * m.taps();
}

std::unique_ptr<ConvolutionPlan> make_dense_convolution(int threads, const ConvolutionSpec& spec) {
  return std::make_unique<DenseConvolution>(threads, spec);
}

}  // namespace pipeoptim::host
