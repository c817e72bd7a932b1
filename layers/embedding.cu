#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/runtime/launch.h"
#include "layers/embedding.h"
#include "layers/lanes.h"
#include "layers/tiles.h"

namespace pipeoptim {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;  // fp32 holds all integers up to here

// One position: its token as an integer, and that row of the table. A NaN is token 0.
struct LookUp {
  const float* tokens;
  const float* table;
  std::int32_t* kept;
  float* output;
  std::int64_t features;
  std::int32_t vocabulary;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t position, const Team& team) const {
    const float asked = tokens[position];
    const auto last = static_cast<float>(vocabulary - 1);
    const auto token = static_cast<std::int32_t>(asked > 0 ? (asked < last ? asked : last) : 0.0F);
    if (team.rank() == 0) kept[position] = token;
    const float* const from = table + token * features;
    float* const to = output + position * features;
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto row = load_tile<kWidth>(from + c);
      Pack<kWidth> copy;
      for (int v = 0; v < kWidth; ++v) copy.value[v] = row.value[v];
      store_tile(to + c, copy);
    });
  }
};

// The gradient of one token's row: a sum over its positions.
struct SumOfToken {
  using LongRows = void;
  const std::int32_t* tokens;
  const float* output_gradient;
  float* gradient;
  std::int64_t features;
  std::int32_t positions;
  bool adds;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t token, const Team& team) const {
#if defined(__CUDA_ARCH__)
    if constexpr (Team::size() > 1) {  // nvcc's device pass looks at the host's team, too
      packs ? sum_by_block<4>(static_cast<std::int32_t>(token), team)
            : sum_by_block<1>(static_cast<std::int32_t>(token), team);
    }
#else
    static_cast<void>(team);
    sum_by_one(static_cast<std::int32_t>(token));
#endif
  }

#if defined(__CUDA_ARCH__)
  // The block looks at as many positions at once as it has members. All come to each vote, also those that
  // own no column, or none any more.
  template <int kWidth, typename Team>
  __device__ void sum_by_block(std::int32_t token, const Team& team) const {
    const SlabMember<Team, kWidth> member(team, {0, positions, 0, features});
    for (std::int64_t first = 0; first < features; first += member.column_step) {
      const std::int64_t c = first + member.column;
      const bool owns = !member.idle && c < features;
      Sums<1>::Of<kWidth> all{};
      std::int32_t met = 0;
      for (std::int32_t begin = 0; begin < positions; begin += team.size()) {
        const std::int32_t own = begin + team.rank();
        const std::uint32_t* const votes = team.vote(own < positions && tokens[own] == token);
        for (std::int32_t word = 0; word < team.size() / 32; ++word) {
          for (std::uint32_t bits = votes[word]; bits != 0; bits &= bits - 1, ++met) {
            if (!owns || met % member.rows.step != member.rows.begin) continue;
            const std::int64_t position = begin + 32 * word + __ffs(static_cast<int>(bits)) - 1;
            all.add({{load_pack<kWidth>(output_gradient + position * features + c)}});
          }
        }
      }
      if (member.at_once) all = team.fold(all, member.tiles);
      const bool stores = member.at_once ? team.rank() < member.tiles : owns;
      if (stores && (!adds || met > 0)) store(gradient + token * features + c, all);
    }
  }

  template <int kWidth>
  __device__ void store(float* to, Sums<1>::Of<kWidth>& all) const {
    if (adds) all.add({{load_pack<kWidth>(to)}});
    store_pack(to, all.sum[0]);
  }
#else
  static constexpr std::int32_t kScan = 64;  // positions that are looked at together

  // The first position from `from` on that holds the token; `positions` where there is none.
  std::int32_t next(std::int32_t token, std::int32_t from) const {
    for (; from + kScan <= positions; from += kScan) {
      std::int32_t found = positions;
      for (std::int32_t i = 0; i < kScan; ++i) {
        const std::int32_t candidate = tokens[from + i] == token ? from + i : positions;
        found = candidate < found ? candidate : found;
      }
      if (found < positions) return found;
    }
    while (from < positions && tokens[from] != token) ++from;
    return from;
  }

  void sum_by_one(std::int32_t token) const {
    float* const to = gradient + token * features;
    if (!adds) std::fill_n(to, features, 0.0F);
    for (std::int32_t position = next(token, 0); position < positions; position = next(token, position + 1)) {
      const float* const from = output_gradient + position * features;
#pragma omp simd
      for (std::int64_t c = 0; c < features; ++c) to[c] += from[c];
    }
  }
#endif
};

// One position of one record.
struct AddPosition {
  const float* input;
  const float* table;
  float* output;
  std::int64_t features, length;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const float* const addend = table + row % length * features;
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto value = load_tile<kWidth>(input + row * features + c), shift = load_tile<kWidth>(addend + c);
      Pack<kWidth> sum;
      for (int v = 0; v < kWidth; ++v) sum.value[v] = value.value[v] + shift.value[v];
      store_tile(output + row * features + c, sum);
    });
  }
};

// The gradient of one position's row: a sum over the records, in their order.
struct SumOfPosition {
  const float* output_gradient;
  float* gradient;
  std::int64_t features, length, records;
  bool adds;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t position, const Team& team) const {
    const std::int64_t terms = position < length ? records : 0;
    float* const to = gradient + position * features;
    for_each_tile(team, features, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      Pack<kWidth> sum{};
      for (std::int64_t n = 0; n < terms; ++n) {
        const auto term = load_tile<kWidth>(output_gradient + (n * length + position) * features + c);
        for (int v = 0; v < kWidth; ++v) sum.value[v] += term.value[v];
      }
      if (adds) {
        const auto before = load_tile<kWidth>(to + c);
        for (int v = 0; v < kWidth; ++v) sum.value[v] += before.value[v];
      }
      store_tile(to + c, sum);
    });
  }
};

double bytes_of(std::int64_t elements) { return sizeof(float) * static_cast<double>(elements); }

}  // namespace

Embedding::Embedding(const EmbeddingOptions& options) : options_(options) {
  if (options.vocabulary < 1 || options.vocabulary > kMostTokens || options.features < 1) {
    throw std::invalid_argument(describe() + ": needs 1 to " + std::to_string(kMostTokens) +
                                " tokens and at least one feature");
  }
}

std::string Embedding::describe() const {
  return "embedding " + std::to_string(options_.vocabulary) + " x " + std::to_string(options_.features);
}

std::vector<Parameter> Embedding::parameters() const {
  return {{.name = "weight",
           .shape = {options_.vocabulary, options_.features},
           .initializer = {Initializer::Kind::kNormal, options_.deviation}}};
}

LayerPlan Embedding::plan(Device, int, const Shape& input) {
  constexpr std::int64_t kMostPositions = std::int64_t{1} << 30;
  if (input.rank() != 2 || input.elements() < 1 || input.elements() > kMostPositions) {
    throw std::invalid_argument(describe() + ": the input must be records x tokens, got " +
                                input.to_string());
  }
  LayerPlan plan;
  plan.output = {input[0], input[1], options_.features};
  plan.stash_bytes = static_cast<std::size_t>(input.elements()) * sizeof(std::int32_t);
  plan.needs = Needs::kNothing;
  plan.bytes = 4 * bytes_of(plan.output.elements()) + bytes_of(options_.vocabulary * options_.features);
  return plan;
}

void Embedding::forward(const ForwardContext& context) const {
  const float* const table = context.weights[0];
  for_each_row(context.stream, context.input.elements(), options_.features,
               LookUp{context.input.data, table, reinterpret_cast<std::int32_t*>(context.stash),
                      context.output.data, options_.features, static_cast<std::int32_t>(options_.vocabulary),
                      allow_tiles(options_.features, table, context.output.data)});
}

void Embedding::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  const auto elements = static_cast<std::size_t>(context.input_gradient.elements());
  context.stream.fill_zero(context.input_gradient.data, elements * sizeof(float));
}

void Embedding::backward_weights(const BackwardContext& context) const {
  const float* const dy = context.output_gradient.data;
  const std::int64_t positions = context.output_gradient.elements() / options_.features;
  for_each_row(context.stream, options_.vocabulary, options_.features,
               SumOfToken{reinterpret_cast<const std::int32_t*>(context.stash), dy, context.gradients[0],
                          options_.features, static_cast<std::int32_t>(positions),
                          context.gradients.mode == GradientMode::kAdd,
                          allow_tiles(options_.features, dy, context.gradients[0])});
}

PositionEmbedding::PositionEmbedding(const PositionEmbeddingOptions& options) : options_(options) {
  if (options.positions < 1 || options.features < 1) {
    throw std::invalid_argument(describe() + ": needs at least one position and one feature");
  }
}

std::string PositionEmbedding::describe() const {
  return "position embedding " + std::to_string(options_.positions) + " x " +
         std::to_string(options_.features);
}

std::vector<Parameter> PositionEmbedding::parameters() const {
  return {{.name = "weight",
           .shape = {options_.positions, options_.features},
           .initializer = {Initializer::Kind::kNormal, options_.deviation}}};
}

LayerPlan PositionEmbedding::plan(Device, int, const Shape& input) {
  if (input.rank() != 3 || input.last() != options_.features || input.elements() < 1 ||
      input[1] > options_.positions) {
    throw std::invalid_argument(describe() + ": the input must be records x at most " +
                                std::to_string(options_.positions) + " positions x " +
                                std::to_string(options_.features) + ", got " + input.to_string());
  }
  LayerPlan plan;
  plan.output = input;
  plan.needs = Needs::kNothing;
  plan.in_place = true;
  plan.bytes = 5 * bytes_of(input.elements());
  return plan;
}

void PositionEmbedding::forward(const ForwardContext& context) const {
  const std::int64_t length = context.input.shape[1];
  const float *x = context.input.data, *table = context.weights[0];
  for_each_row(context.stream, context.input.shape[0] * length, options_.features,
               AddPosition{x, table, context.output.data, options_.features, length,
                           allow_tiles(options_.features, x, table, context.output.data)});
}

void PositionEmbedding::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  context.stream.copy(context.input_gradient.data, context.output_gradient.data,
                      static_cast<std::size_t>(context.output_gradient.elements()) * sizeof(float));
}

void PositionEmbedding::backward_weights(const BackwardContext& context) const {
  const Shape& shape = context.output_gradient.shape;
  const float* const dy = context.output_gradient.data;
  for_each_row(context.stream, options_.positions, options_.features,
               SumOfPosition{dy, context.gradients[0], options_.features, shape[1], shape[0],
                             context.gradients.mode == GradientMode::kAdd,
                             allow_tiles(options_.features, dy, context.gradients[0])});
}

}  // namespace pipeoptim
