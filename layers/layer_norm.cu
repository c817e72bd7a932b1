#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/runtime/launch.h"
#include "layers/lanes.h"
#include "layers/layer_norm.h"
#include "layers/tiles.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

// As with_type_of, of those of input and output that choose_types() lets through.
template <typename Body>
void with_types(const ConstTensor& input, const ConstTensor& output, const Body& body) {
  if (input.rounded != nullptr) return body.template operator()<Bf16, Bf16>();
  with_type_of(output, [&]<typename Y>() { body.template operator()<float, Y>(); });
}

constexpr float kEps = 1e-5F;
constexpr std::int64_t kChunkRows = 32;  // rows that one team sums for the gradients of weight and bias

std::int64_t chunks_of(std::int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }

using Totals = Lanes<float>;

template <typename X, typename Y>
struct Normalize {
  const X* input;
  const float* weight;
  const float* bias;
  Y* output;
  float* means;
  float* rstds;
  std::int64_t features;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const X* const x = input + row * features;
    Y* const y = output + row * features;
    Totals sums(0), squares(0);
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(x + c);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) sums.value[v] += value.value[v];
    });
    const float mean = sums.reduce(team, SumOf{}) / static_cast<float>(features);
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(x + c);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float from_mean = value.value[v] - mean;
        squares.value[v] += from_mean * from_mean;
      }
    });
    const float variance = squares.reduce(team, SumOf{}) / static_cast<float>(features);
    const float rstd = 1.0F / sqrtf(variance + kEps);
    if (team.rank() == 0) {
      means[row] = mean;
      rstds[row] = rstd;
    }
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(x + c);
      const auto gain = load_tile<kWidth>(weight + c), shift = load_tile<kWidth>(bias + c);
      Pack<kWidth> out;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v)
        out.value[v] = (value.value[v] - mean) * rstd * gain.value[v] + shift.value[v];
      store_tile(y + c, out);
    });
  }
};

// dx = rstd (g - mean(g) - xhat mean(g xhat)) with g = weight dy.
template <typename X, typename Y>
struct InputGradient {
  const X* input;
  const float* weight;
  const Y* output_gradient;
  X* input_gradient;
  const float* means;
  const float* rstds;
  std::int64_t features;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const X* const x = input + row * features;
    const Y* const dy = output_gradient + row * features;
    X* const dx = input_gradient + row * features;
    const float mean = means[row], rstd = rstds[row];
    Totals sums(0), products(0);
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(x + c), gradient = load_tile<kWidth>(dy + c);
      const auto gain = load_tile<kWidth>(weight + c);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float g = gradient.value[v] * gain.value[v];
        sums.value[v] += g;
        products.value[v] += g * ((value.value[v] - mean) * rstd);
      }
    });
    const float of_g = sums.reduce(team, SumOf{}) / static_cast<float>(features);
    const float of_xhat = products.reduce(team, SumOf{}) / static_cast<float>(features);
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(x + c), gradient = load_tile<kWidth>(dy + c);
      const auto gain = load_tile<kWidth>(weight + c);
      Pack<kWidth> out;
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float xhat = (value.value[v] - mean) * rstd;
        out.value[v] = rstd * (gradient.value[v] * gain.value[v] - of_g - xhat * of_xhat);
      }
      store_tile(dx + c, out);
    });
  }
};

// Sums of dy xhat, and of dy.
using GradientSums = Sums<2>;

// Over one chunk of rows.
template <typename X, typename Y>
struct ChunkSums {
  using LongRows = void;
  const X* x;
  const Y* dy;
  const float* means;
  const float* rstds;
  float* products;
  float* sums;
  std::int64_t rows, features;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t chunk, const Team& team) const {
    sum_rows<GradientSums::Of>(
        team, row_slab(chunk, kChunkRows, rows, features), packs,
        [&]<int kWidth>(std::int64_t c, const RowSteps& steps) PO_INLINED {
          GradientSums::Of<kWidth> all{};
          PO_UNROLL(2)
          for (std::int64_t r = steps.begin; r < steps.end; r += steps.step) {
            const auto value = load_tile<kWidth>(x + r * features + c);
            const auto gradient = load_tile<kWidth>(dy + r * features + c);
            const float mean = means[r], rstd = rstds[r];
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) {
              all.sum[0].value[v] += gradient.value[v] * ((value.value[v] - mean) * rstd);
              all.sum[1].value[v] += gradient.value[v];
            }
          }
          return all;
        },
        [&]<int kWidth>(std::int64_t c, const GradientSums::Of<kWidth>& all) PO_INLINED {
          store_tile(products + chunk * features + c, all.sum[0]);
          store_tile(sums + chunk * features + c, all.sum[1]);
        });
  }
};

// Over the chunks, for a slab of columns.
struct SumChunks {
  using LongRows = void;
  const float* products;
  const float* sums;
  float* weight_gradient;
  float* bias_gradient;
  std::int64_t chunks, features;
  bool adds;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    sum_rows<GradientSums::Of>(
        team, column_slab(index, chunks, features), packs,
        [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
          GradientSums::Of<kWidth> all{};
          for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
            const auto product = load_tile<kWidth>(products + r * features + c);
            const auto sum = load_tile<kWidth>(sums + r * features + c);
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) {
              all.sum[0].value[v] += product.value[v];
              all.sum[1].value[v] += sum.value[v];
            }
          }
          return all;
        },
        [&]<int kWidth>(std::int64_t c, const GradientSums::Of<kWidth>& all) PO_INLINED {
          PO_SIMD
          for (int v = 0; v < kWidth; ++v) {
            const float product = all.sum[0].value[v], sum = all.sum[1].value[v];
            weight_gradient[c + v] = adds ? weight_gradient[c + v] + product : product;
            bias_gradient[c + v] = adds ? bias_gradient[c + v] + sum : sum;
          }
        });
  }
};

}  // namespace

LayerNorm::LayerNorm(std::int64_t features) : features_(features) {
  if (features < 1)
    throw std::invalid_argument("layer norm needs at least 1 feature, got " + std::to_string(features));
}

std::string LayerNorm::describe() const { return "layer norm " + std::to_string(features_); }

std::vector<Parameter> LayerNorm::parameters() const {
  return {{"weight", {features_}, {Initializer::Kind::kConstant, 1}, Decay::kNo, Storage::kRowMajor},
          {"bias", {features_}, {Initializer::Kind::kConstant, 0}, Decay::kNo, Storage::kRowMajor}};
}

// A sum that is kept in fp32 is made ready for products in bf16; the other way round nobody asks for.
ElementTypes LayerNorm::choose_types(ElementTypes offered) {
  if (offered.output == ElementType::kFp32) return {};
  return offered;
}

LayerPlan LayerNorm::plan(Device, int, const Shape& input) {
  if (input.rank() < 2 || input.last() != features_ || input.elements() < 1) {
    throw std::invalid_argument(describe() + ": the input's last extent must be " +
                                std::to_string(features_) + ", got " + input.to_string());
  }
  const std::int64_t rows = input.elements() / features_;
  LayerPlan plan;
  plan.output = input;
  plan.stash_bytes = 2 * static_cast<std::size_t>(rows) * sizeof(float);
  plan.workspace_bytes = 2 * static_cast<std::size_t>(chunks_of(rows) * features_) * sizeof(float);
  plan.needs = Needs::kInput;
  plan.bytes = 7.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}

void LayerNorm::forward(const ForwardContext& context) const {
  const std::int64_t rows = context.input.elements() / features_;
  auto* const means = reinterpret_cast<float*>(context.stash);
  const float *weight = context.weights[0], *bias = context.weights[1];
  with_types(context.input, context.output, [&]<typename X, typename Y>() {
    const X* const x = values_of<X>(context.input);
    Y* const y = values_of<Y>(context.output);
    for_each_row(context.stream, rows, features_,
                 Normalize<X, Y>{x, weight, bias, y, means, means + rows, features_,
                                 allow_tiles(features_, x, weight, bias, y)});
  });
}

void LayerNorm::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there()) return;
  const std::int64_t rows = context.input.elements() / features_;
  const auto* const means = reinterpret_cast<const float*>(context.stash);
  const float* const weight = context.weights[0];
  with_types(context.input, context.output_gradient, [&]<typename X, typename Y>() {
    const X* const x = values_of<X>(context.input);
    const Y* const dy = values_of<Y>(context.output_gradient);
    X* const dx = values_of<X>(context.input_gradient);
    for_each_row(context.stream, rows, features_,
                 InputGradient<X, Y>{x, weight, dy, dx, means, means + rows, features_,
                                     allow_tiles(features_, x, weight, dy, dx)});
  });
}

void LayerNorm::backward_weights(const BackwardContext& context) const {
  const std::int64_t rows = context.input.elements() / features_, chunks = chunks_of(rows);
  const auto* const means = reinterpret_cast<const float*>(context.stash);
  auto* const products = reinterpret_cast<float*>(context.workspace);
  float* const sums = products + chunks * features_;
  with_types(context.input, context.output_gradient, [&]<typename X, typename Y>() {
    const X* const x = values_of<X>(context.input);
    const Y* const dy = values_of<Y>(context.output_gradient);
    for_each_row(context.stream, chunks, features_,
                 ChunkSums<X, Y>{x, dy, means, means + rows, products, sums, rows, features_,
                                 allow_tiles(features_, x, dy, products, sums)});
  });
  for_each_row(
      context.stream, slabs_of(features_), chunks,
      SumChunks{products, sums, context.gradients[0], context.gradients[1], chunks, features_,
                context.gradients.mode == GradientMode::kAdd, allow_tiles(features_, products, sums)});
}

}  // namespace pipeoptim
