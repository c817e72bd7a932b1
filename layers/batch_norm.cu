#include <cmath>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/batch_norm.h"
#include "layers/tiles.h"

namespace pipeoptim {
namespace {

constexpr std::int64_t kChunkRows =
    256;  // rows that one team sums: 16 KiB at 16 channels, in the first-level cache

std::int64_t chunks_of(std::int64_t rows) { return (rows + kChunkRows - 1) / kChunkRows; }

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

// A team's chunk of rows.
struct Chunk {
  std::int64_t begin, end;
  PO_HD Chunk(std::int64_t index, std::int64_t rows)
      : begin(index * kChunkRows), end((index + 1) * kChunkRows < rows ? (index + 1) * kChunkRows : rows) {}
};

// Mean and sum of squared deviations of each channel in one chunk of rows.
struct ChunkMoments {
  const float* x;
  float* mean;
  float* deviation;
  std::int64_t rows, channels;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const Chunk chunk(index, rows);
    for_each_tile(team, channels, packs, [&]<int kWidth>(std::int64_t c) {
      Pack<kWidth> average{}, squares{};
      for (std::int64_t r = chunk.begin; r < chunk.end; ++r) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        for (int v = 0; v < kWidth; ++v) average.value[v] += row.value[v];
      }
      const float inverse = 1.0F / static_cast<float>(chunk.end - chunk.begin);
      for (int v = 0; v < kWidth; ++v) average.value[v] *= inverse;
      for (std::int64_t r = chunk.begin; r < chunk.end; ++r) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        for (int v = 0; v < kWidth; ++v) {
          const float from_mean = row.value[v] - average.value[v];
          squares.value[v] += from_mean * from_mean;
        }
      }
      store_tile(mean + index * channels + c, average);
      store_tile(deviation + index * channels + c, squares);
    });
  }
};

// Joins the chunks of a channel (Chan et al. 1983), sets the forward's line and moves the running statistics.
struct FinishMoments {
  const float* chunk_mean;
  const float* chunk_deviation;
  const float* weight;
  const float* bias;
  float* running_mean;
  float* running_var;
  Vectors to;
  std::int64_t rows, channels;
  float eps, momentum;

  PO_HD void operator()(std::int64_t c) const {
    double mean = 0;
    double deviation = 0;
    double count = 0;
    for (std::int64_t chunk = 0; chunk * kChunkRows < rows; ++chunk) {
      const std::int64_t left = rows - chunk * kChunkRows;
      const auto size = static_cast<double>(left < kChunkRows ? left : kChunkRows);
      const double delta = static_cast<double>(chunk_mean[chunk * channels + c]) - mean;
      const double both = count + size;
      mean += delta * size / both;
      deviation +=
          static_cast<double>(chunk_deviation[chunk * channels + c]) + delta * delta * count * size / both;
      count = both;
    }
    const double variance = deviation / count;
    const double rstd = 1.0 / sqrt(variance + static_cast<double>(eps));
    to.mean[c] = static_cast<float>(mean);
    to.rstd[c] = static_cast<float>(rstd);
    to.scale[c] = weight[c] * to.rstd[c];
    to.shift[c] = bias[c] - to.mean[c] * to.scale[c];
    const double unbiased = count > 1 ? deviation / (count - 1) : variance;
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

template <Activation kActivation>
struct Normalize {
  const float* x;
  float* y;
  const float* scale;
  const float* shift;
  std::int64_t rows, channels;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const Chunk chunk(index, rows);
    for_each_tile(team, channels, packs, [&]<int kWidth>(std::int64_t c) {
      const auto slope = load_tile<kWidth>(scale + c), offset = load_tile<kWidth>(shift + c);
      for (std::int64_t r = chunk.begin; r < chunk.end; ++r) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        Pack<kWidth> out;
        for (int v = 0; v < kWidth; ++v) {
          const float value = row.value[v] * slope.value[v] + offset.value[v];
          out.value[v] = kActivation == Activation::kRelu && value < 0 ? 0 : value;
        }
        store_tile(y + r * channels + c, out);
      }
    });
  }
};

// The gradient behind the activation, from that in front of it.
template <Activation kActivation>
PO_HD float behind(float gradient, float x, float scale, float shift) {
  const bool off = kActivation == Activation::kRelu && !(x * scale + shift > 0);
  return off ? 0.0F : gradient;
}

// Sums of g and g xhat over one chunk, g the gradient behind the activation.
template <Activation kActivation>
struct ChunkSums {
  const float* x;
  const float* dy;
  Vectors from;
  float* sum;
  float* product;
  std::int64_t rows, channels;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const Chunk chunk(index, rows);
    for_each_tile(team, channels, packs, [&]<int kWidth>(std::int64_t c) {
      const auto scale = load_tile<kWidth>(from.scale + c), shift = load_tile<kWidth>(from.shift + c);
      const auto mean = load_tile<kWidth>(from.mean + c);
      Pack<kWidth> g_sum{}, x_sum{};
      for (std::int64_t r = chunk.begin; r < chunk.end; ++r) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        const auto gradient = load_tile<kWidth>(dy + r * channels + c);
        for (int v = 0; v < kWidth; ++v) {
          const float g =
              behind<kActivation>(gradient.value[v], row.value[v], scale.value[v], shift.value[v]);
          g_sum.value[v] += g;
          x_sum.value[v] += g * (row.value[v] - mean.value[v]);
        }
      }
      const auto rstd = load_tile<kWidth>(from.rstd + c);
      for (int v = 0; v < kWidth; ++v) x_sum.value[v] *= rstd.value[v];
      store_tile(sum + index * channels + c, g_sum);
      store_tile(product + index * channels + c, x_sum);
    });
  }
};

struct FinishSums {
  const float* chunk_sum;
  const float* chunk_product;
  const float* weight;
  Vectors to;
  std::int64_t rows, channels;

  PO_HD void operator()(std::int64_t c) const {
    double sum = 0;
    double product = 0;
    for (std::int64_t chunk = 0; chunk * kChunkRows < rows; ++chunk) {
      sum += static_cast<double>(chunk_sum[chunk * channels + c]);
      product += static_cast<double>(chunk_product[chunk * channels + c]);
    }
    to.sum[c] = static_cast<float>(sum);
    to.product[c] = static_cast<float>(product);
    // dx = weight rstd (g - sum/rows - xhat product/rows), written as a line in g and x.
    const double gain = static_cast<double>(weight[c]) * static_cast<double>(to.rstd[c]);
    const double of_x = -gain * static_cast<double>(to.rstd[c]) * product / static_cast<double>(rows);
    to.of_g[c] = static_cast<float>(gain);
    to.of_x[c] = static_cast<float>(of_x);
    to.rest[c] =
        static_cast<float>(-gain * sum / static_cast<double>(rows) - of_x * static_cast<double>(to.mean[c]));
  }
};

template <Activation kActivation>
struct InputGradient {
  const float* x;
  const float* dy;
  float* dx;
  Vectors from;
  std::int64_t rows, channels;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t index, const Team& team) const {
    const Chunk chunk(index, rows);
    for_each_tile(team, channels, packs, [&]<int kWidth>(std::int64_t c) {
      const auto scale = load_tile<kWidth>(from.scale + c), shift = load_tile<kWidth>(from.shift + c);
      const auto of_g = load_tile<kWidth>(from.of_g + c), of_x = load_tile<kWidth>(from.of_x + c);
      const auto rest = load_tile<kWidth>(from.rest + c);
      for (std::int64_t r = chunk.begin; r < chunk.end; ++r) {
        const auto row = load_tile<kWidth>(x + r * channels + c);
        const auto gradient = load_tile<kWidth>(dy + r * channels + c);
        Pack<kWidth> out;
        for (int v = 0; v < kWidth; ++v) {
          const float g =
              behind<kActivation>(gradient.value[v], row.value[v], scale.value[v], shift.value[v]);
          out.value[v] = of_g.value[v] * g + (of_x.value[v] * row.value[v] + rest.value[v]);
        }
        store_tile(dx + r * channels + c, out);
      }
    });
  }
};

struct Accumulate {
  const float* from;
  float* to;
  float keep;  // 0: overwrite, 1: add
  PO_HD void operator()(std::int64_t i) const { to[i] = keep == 0 ? from[i] : to[i] + from[i]; }
};

template <Activation kActivation>
void normalize(const ForwardContext& context, const Vectors& vectors, std::int64_t rows,
               std::int64_t channels) {
  for_each_row(context.stream, chunks_of(rows), channels,
               Normalize<kActivation>{
                   context.input.data, context.output.data, vectors.scale, vectors.shift, rows, channels,
                   allow_tiles(channels, context.input.data, context.output.data, vectors.scale)});
}

template <Activation kActivation>
void run_backward(const BackwardContext& context, std::int64_t rows, std::int64_t channels) {
  const Vectors vectors(context.stash, channels);
  auto* sums = reinterpret_cast<float*>(context.workspace);
  float* products = sums + chunks_of(rows) * channels;
  const float* x = context.input.data;
  const float* dy = context.output_gradient.data;
  const bool packs = allow_tiles(channels, x, dy, sums, vectors.scale);
  for_each_row(context.stream, chunks_of(rows), channels,
               ChunkSums<kActivation>{x, dy, vectors, sums, products, rows, channels, packs});
  for_each(context.stream, channels, FinishSums{sums, products, context.weights[0], vectors, rows, channels});
  if (!context.input_gradient.data) return;
  for_each_row(context.stream, chunks_of(rows), channels,
               InputGradient<kActivation>{x, dy, context.input_gradient.data, vectors, rows, channels,
                                          packs && allow_packs(context.input_gradient.data)});
}

}  // namespace

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

LayerPlan BatchNorm2d::plan(Device, int, const Shape& input) {
  if ((input.rank() != 2 && input.rank() != 4) || input.last() != channels_) {
    throw std::invalid_argument(
        describe() + " needs an input of " + std::to_string(channels_) +
        " channels (records x height x width x channels, or records x channels), got " + input.to_string());
  }
  const std::int64_t rows = input.elements() / channels_;
  LayerPlan plan;
  plan.output = input;
  plan.stash_bytes = Vectors::kCount * static_cast<std::size_t>(channels_) * sizeof(float);
  plan.workspace_bytes = 2 * static_cast<std::size_t>(chunks_of(rows) * channels_) * sizeof(float);
  plan.needs = Needs::kInput;
  plan.bytes = 8.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}

void BatchNorm2d::forward(const ForwardContext& context) const {
  const std::int64_t rows = context.input.elements() / channels_;
  const Vectors vectors(context.stash, channels_);
  const float* weight = context.weights[0];
  const float* bias = context.weights[1];
  if (context.mode == Mode::kTraining) {
    auto* means = reinterpret_cast<float*>(context.workspace);
    float* deviations = means + chunks_of(rows) * channels_;
    for_each_row(context.stream, chunks_of(rows), channels_,
                 ChunkMoments{context.input.data, means, deviations, rows, channels_,
                              allow_tiles(channels_, context.input.data, means)});
    for_each(context.stream, channels_,
             FinishMoments{means, deviations, weight, bias, context.states[0], context.states[1], vectors,
                           rows, channels_, options_.eps, options_.momentum});
  } else {
    for_each(context.stream, channels_,
             RunningLine{weight, bias, context.states[0], context.states[1], vectors, options_.eps});
  }
  if (options_.activation == Activation::kRelu) {
    normalize<Activation::kRelu>(context, vectors, rows, channels_);
  } else {
    normalize<Activation::kNone>(context, vectors, rows, channels_);
  }
}

void BatchNorm2d::backward_input(const BackwardContext& context) const {
  const std::int64_t rows = context.input.elements() / channels_;
  if (options_.activation == Activation::kRelu) {
    run_backward<Activation::kRelu>(context, rows, channels_);
  } else {
    run_backward<Activation::kNone>(context, rows, channels_);
  }
}

// The sums that backward_input left in the stash are these gradients.
void BatchNorm2d::backward_weights(const BackwardContext& context) const {
  const Vectors vectors(context.stash, channels_);
  const float keep = context.gradients.mode == GradientMode::kAdd ? 1.0F : 0.0F;
  for_each(context.stream, channels_, Accumulate{vectors.product, context.gradients[0], keep});
  for_each(context.stream, channels_, Accumulate{vectors.sum, context.gradients[1], keep});
}

}  // namespace pipeoptim
