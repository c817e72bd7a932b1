#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/accumulate.h"
#include "layers/batch_norm.h"
#include "layers/batch_norm_parts.h"
#include "layers/tiles.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

using namespace batch_norm;

// Mean and sum of squared deviations of some rows, which join as in Chan et al. 1983.
template <int kWidth>
struct Moments {
  float count;
  Pack<kWidth> mean, deviation;

  PO_HD void add(const Moments& other) {
    if (other.count == 0) return;
    const float both = count + other.count;
    const float share = other.count / both;
    PO_SIMD
    for (int v = 0; v < kWidth; ++v) {
      const float delta = other.mean.value[v] - mean.value[v];
      mean.value[v] += delta * share;
      deviation.value[v] += other.deviation.value[v] + delta * delta * (count * share);
    }
    count = both;
  }
};

// Those of each channel in one chunk of rows. A member goes over its rows twice; the second time they are in
// the cache.
template <typename T>
struct ChunkMoments {
  using LongRows = void;
  const T* x;
  float* mean;
  float* deviation;
  Chunks chunks;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const std::int64_t channels = chunks.channels;
    sum_rows<Moments>(
        team, chunks.slab(index), packs,
        [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
          Moments<kWidth> all{};
          for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
            const auto row = load_tile<kWidth>(x + r * channels + c);
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) all.mean.value[v] += row.value[v];
            all.count += 1;
          }
          const float inverse = all.count > 0 ? 1.0F / all.count : 0;
          PO_SIMD
          for (int v = 0; v < kWidth; ++v) all.mean.value[v] *= inverse;
          for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
            const auto row = load_tile<kWidth>(x + r * channels + c);
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) {
              const float from_mean = row.value[v] - all.mean.value[v];
              all.deviation.value[v] += from_mean * from_mean;
            }
          }
          return all;
        },
        [&]<int kWidth>(std::int64_t c, const Moments<kWidth>& all) PO_INLINED {
          store_tile(mean + index * channels + c, all.mean);
          store_tile(deviation + index * channels + c, all.deviation);
        });
  }
};

// Joins the chunks of a channel by differences from the first one's mean, sets the forward's line and moves
// the running statistics.
struct FinishMoments {
  using LongRows = void;
  const float* chunk_mean;
  const float* chunk_deviation;
  const float* weight;
  const float* bias;
  float* running_mean;
  float* running_var;
  Vectors to;
  Chunks chunks;
  float eps, momentum;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const std::int64_t channels = chunks.channels;
    const Slab slab = column_slab(index, chunks.count(), channels);
    sum_rows<Sums<2, double>::Of>(
        team, slab, SingleValues{},
        [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
          const auto pivot = load_tile<kWidth>(chunk_mean + c);
          Sums<2, double>::Of<kWidth> sums{};
          for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
            const auto mean = load_tile<kWidth>(chunk_mean + r * channels + c);
            const auto deviation = load_tile<kWidth>(chunk_deviation + r * channels + c);
            const auto size = static_cast<double>(chunks.rows_of(r));
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) {
              const double difference =
                  static_cast<double>(mean.value[v]) - static_cast<double>(pivot.value[v]);
              sums.sum[0].value[v] += size * difference;
              sums.sum[1].value[v] +=
                  static_cast<double>(deviation.value[v]) + size * difference * difference;
            }
          }
          return sums;
        },
        [&]<int kWidth>(std::int64_t c, const Sums<2, double>::Of<kWidth>& sums) PO_INLINED {
          PO_SIMD
          for (int v = 0; v < kWidth; ++v) finish(c + v, sums.sum[0].value[v], sums.sum[1].value[v]);
        });
  }

  PO_HD void finish(std::int64_t c, double differences, double squares) const {
    const auto count = static_cast<double>(chunks.rows);
    const double mean = static_cast<double>(chunk_mean[c]) + differences / count;
    const double deviation = squares - differences * differences / count;
    const double variance = deviation > 0 ? deviation / count : 0;
    const double rstd = 1.0 / sqrt(variance + static_cast<double>(eps));
    to.mean[c] = static_cast<float>(mean);
    to.rstd[c] = static_cast<float>(rstd);
    to.scale[c] = weight[c] * to.rstd[c];
    to.shift[c] = bias[c] - to.mean[c] * to.scale[c];
    const double unbiased = count > 1 ? variance * count / (count - 1) : variance;
    running_mean[c] = (1.0F - momentum) * running_mean[c] + momentum * static_cast<float>(mean);
    running_var[c] = (1.0F - momentum) * running_var[c] + momentum * static_cast<float>(unbiased);
  }
};

struct RunningLine {
  const float* weight;
  const float* bias;
  const float* running_mean;
  const float* running_var;
  Vectors to;
  float eps;
  PO_HD void operator()(std::int64_t c) const {
    to.scale[c] = weight[c] / sqrtf(running_var[c] + eps);
    to.shift[c] = bias[c] - running_mean[c] * to.scale[c];
  }
};

template <Activation kActivation, typename T>
struct Normalize {
  using LongRows = void;
  const T* x;
  T* y;
  const float* scale;
  const float* shift;
  Chunks chunks;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const std::int64_t channels = chunks.channels;
    const auto body = [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
      const auto slope = load_tile<kWidth>(scale + c), offset = load_tile<kWidth>(shift + c);
      for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        Pack<kWidth> out;
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) {
          const float value = row.value[v] * slope.value[v] + offset.value[v];
          out.value[v] = kActivation == Activation::kRelu && value < 0 ? 0 : value;
        }
        store_tile(y + r * channels + c, out);
      }
    };
    for_each_tile_of_rows(team, chunks.slab(index), packs, body);
  }
};

// Sums of g and g xhat over one chunk, g the gradient behind the activation.
template <Activation kActivation, typename T>
struct ChunkSums {
  using LongRows = void;
  const T* x;
  const T* dy;
  Vectors from;
  float* sum;
  float* product;
  Chunks chunks;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const std::int64_t channels = chunks.channels;
    sum_rows<Sums<2>::Of>(
        team, chunks.slab(index), packs,
        [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
          const auto scale = load_tile<kWidth>(from.scale + c), shift = load_tile<kWidth>(from.shift + c);
          const auto mean = load_tile<kWidth>(from.mean + c);
          Sums<2>::Of<kWidth> sums{};
          PO_UNROLL(2)
          for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
            const auto row = load_tile<kWidth>(x + r * channels + c);
            const auto gradient = load_tile<kWidth>(dy + r * channels + c);
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) {
              const float g =
                  behind<kActivation>(gradient.value[v], row.value[v], scale.value[v], shift.value[v]);
              sums.sum[0].value[v] += g;
              sums.sum[1].value[v] += g * (row.value[v] - mean.value[v]);
            }
          }
          return sums;
        },
        [&]<int kWidth>(std::int64_t c, const Sums<2>::Of<kWidth>& sums) PO_INLINED {
          const auto rstd = load_tile<kWidth>(from.rstd + c);
          Pack<kWidth> scaled;
          PO_SIMD
          for (int v = 0; v < kWidth; ++v) scaled.value[v] = sums.sum[1].value[v] * rstd.value[v];
          store_tile(sum + index * channels + c, sums.sum[0]);
          store_tile(product + index * channels + c, scaled);
        });
  }
};

struct FinishSums {
  using LongRows = void;
  const float* chunk_sum;
  const float* chunk_product;
  const float* weight;
  Vectors to;
  Chunks chunks;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const std::int64_t channels = chunks.channels;
    sum_rows<Sums<2, double>::Of>(
        team, column_slab(index, chunks.count(), channels), SingleValues{},
        [&]<int kWidth>(std::int64_t c, const RowSteps& rows) PO_INLINED {
          Sums<2, double>::Of<kWidth> sums{};
          for (std::int64_t r = rows.begin; r < rows.end; r += rows.step) {
            const auto sum = load_tile<kWidth>(chunk_sum + r * channels + c);
            const auto product = load_tile<kWidth>(chunk_product + r * channels + c);
            PO_SIMD
            for (int v = 0; v < kWidth; ++v) {
              sums.sum[0].value[v] += static_cast<double>(sum.value[v]);
              sums.sum[1].value[v] += static_cast<double>(product.value[v]);
            }
          }
          return sums;
        },
        [&]<int kWidth>(std::int64_t c, const Sums<2, double>::Of<kWidth>& sums) PO_INLINED {
          PO_SIMD
          for (int v = 0; v < kWidth; ++v) finish(c + v, sums.sum[0].value[v], sums.sum[1].value[v]);
        });
  }

  // dx = weight rstd (g - sum/rows - xhat product/rows), written as a line in g and x.
  PO_HD void finish(std::int64_t c, double sum, double product) const {
    const auto rows = static_cast<double>(chunks.rows);
    to.sum[c] = static_cast<float>(sum);
    to.product[c] = static_cast<float>(product);
    const double gain = static_cast<double>(weight[c]) * static_cast<double>(to.rstd[c]);
    const double of_x = -gain * static_cast<double>(to.rstd[c]) * product / rows;
    to.of_g[c] = static_cast<float>(gain);
    to.of_x[c] = static_cast<float>(of_x);
    to.rest[c] = static_cast<float>(-gain * sum / rows - of_x * static_cast<double>(to.mean[c]));
  }
};

// dx = of_g g + of_x x + rest.
template <int kWidth>
struct InputGradient {
  Tile<kWidth, float> of_g, of_x, rest;
  PO_HD InputGradient(const Vectors& from, std::int64_t c)
      : of_g(load_tile<kWidth>(from.of_g + c)),
        of_x(load_tile<kWidth>(from.of_x + c)),
        rest(load_tile<kWidth>(from.rest + c)) {}
  PO_HD float operator()(int v, float g, float x) const {
    return of_g.value[v] * g + (of_x.value[v] * x + rest.value[v]);
  }
};

template <Activation kActivation>
void normalize(const ForwardContext& context, const Vectors& vectors, const Chunks& chunks) {
  with_type_of(context.input, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    T* const y = values_of<T>(context.output);
    for_each_row(context.stream, chunks.count(), chunks.channels,
                 Normalize<kActivation, T>{x, y, vectors.scale, vectors.shift, chunks,
                                           allow_tiles(chunks.channels, x, y, vectors.scale)});
  });
}

template <Activation kActivation>
void run_backward(const BackwardContext& context) {
  const Chunks chunks = chunks_of(context.stream, context.input);
  const std::int64_t channels = chunks.channels;
  const Vectors vectors(context.stash, channels);
  auto* const sums = reinterpret_cast<float*>(context.workspace);
  float* const products = sums + chunks.count() * channels;
  with_type_of(context.input, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    const T* const dy = values_of<T>(context.output_gradient);
    T* const dx = values_of<T>(context.input_gradient);
    const bool packs = allow_tiles(channels, x, dy, sums, vectors.scale);
    for_each_row(context.stream, chunks.count(), channels,
                 ChunkSums<kActivation, T>{x, dy, vectors, sums, products, chunks, packs});
    for_each_row(context.stream, slabs_of(channels), chunks.count(),
                 FinishSums{sums, products, context.weights[0], vectors, chunks});
    if (dx == nullptr) return;
    for_each_row(
        context.stream, chunks.count(), channels,
        MapGradient<kActivation, T, InputGradient>{x, dy, dx, vectors, chunks, packs && allow_packs(dx)});
  });
}

// {N, C} as an image of one pixel a record.
Shape image_of(const Shape& input) { return input.rank() == 4 ? input : Shape{input[0], 1, 1, input.last()}; }

}  // namespace

BatchNorm2d::~BatchNorm2d() = default;
BatchNorm2d::BatchNorm2d(std::int64_t channels, BatchNormOptions options)
    : channels_(channels), options_(options) {
  if (channels < 1)
    throw std::invalid_argument("batch norm needs at least 1 channel, got " + std::to_string(channels));
}

std::string BatchNorm2d::describe() const {
  return "batch norm " + std::to_string(channels_) +
         (options_.activation == Activation::kRelu ? " + relu" : "");
}

std::vector<Parameter> BatchNorm2d::parameters() const {
  return {{"weight", {channels_}, {Initializer::Kind::kConstant, 1}, Decay::kNo, Storage::kRowMajor},
          {"bias", {channels_}, {Initializer::Kind::kConstant, 0}, Decay::kNo, Storage::kRowMajor}};
}

std::vector<State> BatchNorm2d::states() const {
  return {{"running_mean", {channels_}, 0}, {"running_var", {channels_}, 1}};
}

ElementTypes BatchNorm2d::choose_types(ElementTypes offered) {
  const ElementTypes chosen = same_types(offered);
  type_ = chosen.input;
  return chosen;
}

LayerPlan BatchNorm2d::plan(Device device, int, const Shape& input) {
  if ((input.rank() != 2 && input.rank() != 4) || input.last() != channels_) {
    throw std::invalid_argument(
        describe() + " needs an input of " + std::to_string(channels_) +
        " channels (records x height x width x channels, or records x channels), got " + input.to_string());
  }
  const Chunks chunks(device, input.elements(), channels_);
  LayerPlan plan;
  plan.output = input;
  plan.stash_bytes = Vectors::kCount * static_cast<std::size_t>(channels_) * sizeof(float);
  plan.workspace_bytes = 2 * float_bytes(chunks.count() * channels_);
  vendor_ = nullptr;
  if (kernels_ == RowKernels::kCudnn && device.backend == Backend::kCuda) {
    const VendorNormSpec spec{.input = image_of(input),
                              .type = type_,
                              .eps = options_.eps,
                              .momentum = options_.momentum,
                              .activation = options_.activation};
    vendor_ = detail::make_cuda_norm(device, spec);
    if (vendor_) plan.workspace_bytes = std::max(plan.workspace_bytes, vendor_workspace(*vendor_, spec));
  }
  plan.needs = Needs::kInput;
  plan.bytes = 8.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}

void BatchNorm2d::forward(const ForwardContext& context) const {
  const Chunks chunks = chunks_of(context.stream, context.input);
  const Vectors vectors(context.stash, channels_);
  const float* weight = context.weights[0];
  const float* bias = context.weights[1];
  if (context.mode == Mode::kTraining && vendor_) return forward_by(*vendor_, context, vectors);
  if (context.mode == Mode::kTraining) {
    auto* means = reinterpret_cast<float*>(context.workspace);
    float* deviations = means + chunks.count() * channels_;
    with_type_of(context.input, [&]<typename T>() {
      const T* const x = values_of<T>(context.input);
      for_each_row(context.stream, chunks.count(), channels_,
                   ChunkMoments<T>{x, means, deviations, chunks, allow_tiles(channels_, x, means)});
    });
    for_each_row(context.stream, slabs_of(channels_), chunks.count(),
                 FinishMoments{means, deviations, weight, bias, context.states[0], context.states[1], vectors,
                               chunks, options_.eps, options_.momentum});
  } else {
    for_each(context.stream, channels_,
             RunningLine{weight, bias, context.states[0], context.states[1], vectors, options_.eps});
  }
  if (options_.activation == Activation::kRelu) {
    normalize<Activation::kRelu>(context, vectors, chunks);
  } else {
    normalize<Activation::kNone>(context, vectors, chunks);
  }
}

void BatchNorm2d::backward_input(const BackwardContext& context) const {
  if (vendor_ && context.input_gradient.there()) {
    return backward_by(*vendor_, context, options_.activation, Vectors(context.stash, channels_));
  }
  if (options_.activation == Activation::kRelu) {
    run_backward<Activation::kRelu>(context);
  } else {
    run_backward<Activation::kNone>(context);
  }
}

// The sums that backward_input left in the stash are these gradients.
void BatchNorm2d::backward_weights(const BackwardContext& context) const {
  const Vectors vectors(context.stash, channels_);
  const auto give = [&](const float* sums, float* gradient) {
    if (context.gradients.mode == GradientMode::kAdd) {
      accumulate(context.stream, channels_, sums, gradient);
    } else {
      context.stream.copy(gradient, sums, float_bytes(channels_));
    }
  };
  give(vectors.product, context.gradients[0]);
  give(vectors.sum, context.gradients[1]);
}

}  // namespace pipeoptim
