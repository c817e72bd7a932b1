#include "layers/host/tiled_linear.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "layers/host/factors.h"

namespace pipeoptim::host {

#if defined(__x86_64__)

namespace {

constexpr std::int64_t kLeastRows = 512, kGroupRows = 1024;

using Range = TiledLinear::Range;

// An extent in parts of multiples of `unit`, which differ by at most one unit.
struct Parts {
  std::int64_t extent, unit, count;

  static Parts of_at_most(std::int64_t most, std::int64_t extent, std::int64_t unit) {
    return {extent, unit, quotient_up(extent, most)};
  }
  Range operator[](std::int64_t part) const {
    return {extent / unit * part / count * unit, extent / unit * (part + 1) / count * unit};
  }
  std::int64_t largest() const { return quotient_up(extent / unit, count) * unit; }
};

// Columns that are packed together: three vectors, and two where three do not come out even.
constexpr std::int64_t kPanel = 3 * kLanes, kNarrowPanel = 2 * kLanes;

struct Panels {
  std::int64_t columns;  // in sixteens, more than one

  std::int64_t narrow() const { return (3 - columns / kLanes % 3) % 3; }
  std::int64_t wide() const { return (columns - narrow() * kNarrowPanel) / kPanel; }
  std::int64_t count() const { return wide() + narrow(); }
  std::int64_t begin(std::int64_t panel) const {
    const std::int64_t behind = std::max<std::int64_t>(0, panel - wide());
    return (panel - behind) * kPanel + behind * kNarrowPanel;
  }
  std::int64_t width(std::int64_t panel) const { return panel < wide() ? kPanel : kNarrowPanel; }
};

// Dwords of a column of a panel: not a power of two, so that panels do not compete for the same lines of a
// cache.
constexpr std::int64_t stride_of(std::int64_t dwords) { return dwords + 2; }

std::size_t packed_bytes(std::int64_t values, std::int64_t columns) {
  const std::int64_t dwords = stride_of(values / Bf16Factors::kValues) * columns;
  return align_up(static_cast<std::size_t>(dwords) * sizeof(std::uint32_t));
}

// Where tiles go.
struct Result {
  Destination to;  // from the first row and column on
  std::int64_t stride;
  const float* bias = nullptr;
  bool relu = false, adds = false;

  Result at(std::int64_t row, std::int64_t column) const {
    Result moved = *this;
    if (to.rounded != nullptr) moved.to.rounded += row * stride + column;
    if (to.values != nullptr) moved.to.values += row * stride + column;
    if (bias != nullptr) moved.bias += column;
    return moved;
  }
  PO_BF16_PAIRS void store(std::int64_t row, std::int64_t column, __m512 sums) const {
    const std::int64_t at = row * stride + column;
    if (bias != nullptr) sums = _mm512_add_ps(sums, _mm512_loadu_ps(bias + column));
    if (relu) sums = _mm512_max_ps(_mm512_setzero_ps(), sums);  // the second one where one is NaN
    if (to.rounded != nullptr) return Bf16Factors::store(to.rounded + at, sums);
    if (adds) sums = _mm512_add_ps(sums, _mm512_loadu_ps(to.values + at));
    _mm512_storeu_ps(to.values + at, sums);
  }
};

// The factor of the rows: that of row m at dword d lies at m row + d step, for rows in groups of kRows, which
// begin `group` dwords from each other.
struct RowFactor {
  const std::uint32_t* from;
  std::int64_t group, row, step;
};

// All panels of `packed`, each for all rows.
PO_BF16_PAIRS void multiply_panels(const RowFactor& a, std::int64_t rows, const std::uint32_t* packed,
                                   const Panels& panels, std::int64_t dwords, const Result& result) {
  for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
    const std::int64_t column = panels.begin(panel), width = panels.width(panel);
    for (std::int64_t group = 0; group < rows / kRows; ++group) {
      const Product<Bf16Factors> product{.a = a.from + group * a.group,
                                         .a_row = a.row,
                                         .a_step = a.step,
                                         .b = packed + column * stride_of(dwords),
                                         .b_step = width,
                                         .dwords = dwords};
      const Result tile = result.at(group * kRows, column);
      if (width == kPanel) {
        multiply_tile<3>(product, 0, 0, tile);
      } else {
        multiply_tile<2>(product, 0, 0, tile);
      }
    }
  }
}

// Rows of a dense matrix.
struct Source {
  const Bf16* from;
  std::int64_t stride;
};

// Asks for two rows before they are packed: they come from memory, or from another core's caches. Inlined for
// sure: GCC leaves out calls of functions that do nothing else.
PO_INLINED inline void prefetch_pair(const Source& rows, std::int64_t columns, std::int64_t pair) {
  constexpr std::int64_t kLine = 64 / sizeof(Bf16);
  const Bf16 *const first = rows.from + 2 * pair * rows.stride, *const second = first + rows.stride;
  for (std::int64_t c = 0; c < columns; c += kLine) {
    __builtin_prefetch(first + c);
    __builtin_prefetch(second + c);
  }
}
constexpr std::int64_t kPairsAhead = 4;

// Panels of columns, in pairs of rows.
PO_BF16_PAIRS void pack_panels(const Source& rows, const Panels& panels, std::int64_t pairs,
                               std::uint32_t* packed) {
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (pair + kPairsAhead < pairs) prefetch_pair(rows, panels.columns, pair + kPairsAhead);
    const Bf16 *const first = rows.from + 2 * pair * rows.stride, *const second = first + rows.stride;
    for (std::int64_t panel = 0; panel < panels.count(); ++panel) {
      const std::int64_t column = panels.begin(panel), width = panels.width(panel);
      std::uint32_t* const to = packed + column * stride_of(pairs) + pair * width;
      for (std::int64_t c = 0; c < width; c += kLanes) {
        _mm512_store_si512(to + c, paired(first, second, column + c));
      }
    }
  }
}

// The same to groups of kRows columns.
PO_BF16_PAIRS void pack_groups(const Source& rows, std::int64_t columns, std::int64_t pairs,
                               std::uint32_t* groups) {
  const std::int64_t next = kRows * stride_of(pairs);
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    if (pair + kPairsAhead < pairs) prefetch_pair(rows, columns, pair + kPairsAhead);
    const Bf16 *const first = rows.from + 2 * pair * rows.stride, *const second = first + rows.stride;
    std::uint32_t* to = groups + pair * kRows;
    for (std::int64_t c = 0; c < columns; c += kLanes, to += 2 * next) {
      const __m512i both = paired(first, second, c);
      _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(both));
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + next), _mm512_extracti64x4_epi64(both, 1));
    }
  }
}

// rows . columns to a result: rows x inner, inner x columns.
struct RowProduct {
  const Bf16* from;  // the rows, as they lie
  std::int64_t rows, columns, inner;
  Result result;
};

// Of products whose rows are taken as they lie: what is packed of the columns, and rows that meet it before
// the next ones. Both stay in the second-level cache.
constexpr std::int64_t kPackedValues = 256 * 1024, kChunk = 128;

Parts packed_parts(std::int64_t columns, std::int64_t inner) {
  const std::int64_t most = kPackedValues / inner / kLanes * kLanes;
  return Parts::of_at_most(std::max(most, kPanel), columns, kLanes);
}

std::size_t packed_part_bytes(std::int64_t columns, std::int64_t inner) {
  return packed_bytes(inner, packed_parts(columns, inner).largest());
}

// result = rows . columns, each thread for its rows. pack(first, panels, to) packs columns from the first one
// on.
template <typename Pack>
void multiply_rows(int threads, const RowProduct& product, const Pack& pack, std::byte* workspace) {
  const std::int64_t inner = product.inner, dwords = inner / Bf16Factors::kValues;
  const Parts parts = packed_parts(product.columns, inner);
  const std::size_t bytes = packed_part_bytes(product.columns, inner);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    const Range mine = Parts{product.rows, kRows, threads}[thread];
    auto* const packed =
        reinterpret_cast<std::uint32_t*>(workspace + static_cast<std::size_t>(thread) * bytes);
    for (std::int64_t part = 0; part < parts.count; ++part) {
      const Panels panels{parts[part].size()};
      pack(parts[part].begin, panels, packed);
      for (std::int64_t row = mine.begin; row < mine.end; row += kChunk) {
        multiply_panels({.from = reinterpret_cast<const std::uint32_t*>(product.from + row * inner),
                         .group = kRows * dwords,
                         .row = dwords,
                         .step = 1},
                        std::min(kChunk, mine.end - row), packed, panels, dwords,
                        product.result.at(row, parts[part].begin));
      }
    }
  }
}

// Of weight gradients: what is packed together of both factors, and rows of a block of them.
constexpr std::int64_t kPackedColumns = 256, kBlockRows = 1024;

Parts gradient_parts(std::int64_t columns) { return Parts::of_at_most(kPackedColumns, columns, kLanes); }

}  // namespace

bool TiledLinear::handles(const LinearSpec& spec) {
  const auto fills = [](std::int64_t features) { return features % kLanes == 0 && features >= 2 * kLanes; };
  return spec.precision == MatrixPrecision::kBf16 && multiplies_bf16_pairs() && spec.rows % kRows == 0 &&
         spec.rows >= kLeastRows && fills(spec.in) && fills(spec.out);
}

TiledLinear::TiledLinear(int threads, const LinearSpec& spec)
    : threads_(threads), rows_(spec.rows), in_(spec.in), out_(spec.out), activation_(spec.activation) {
  if (!handles(spec)) throw std::logic_error("not for a map of these extents");
  while (groups_ > 1 && (threads_ % groups_ != 0 || rows_ < groups_ * kGroupRows)) --groups_;
}

std::size_t TiledLinear::sums_bytes() const {
  return static_cast<std::size_t>((groups_ - 1) * in_ * out_) * sizeof(float);
}

std::size_t TiledLinear::packed_gradient_bytes() const {
  return 2 * packed_bytes(kBlockRows, kPackedColumns);
}

std::size_t TiledLinear::workspace_bytes() const {
  const std::size_t packed = std::max(packed_part_bytes(out_, in_), packed_part_bytes(in_, out_));
  const auto threads = static_cast<std::size_t>(threads_);
  return std::max(threads * packed, align_up(sums_bytes()) + threads * packed_gradient_bytes());
}

void TiledLinear::forward(Stream& stream, const Bf16* input, const Bf16* weights, const float* bias,
                          const Destination& output, std::byte* workspace) const {
  stream.submit([this, input, weights, bias, output, workspace] {
    const auto pack = [&](std::int64_t first, const Panels& all, std::uint32_t* packed) {
      for (std::int64_t panel = 0; panel < all.count(); ++panel) {
        const std::int64_t column = all.begin(panel), width = all.width(panel);
        pack_transposed(Rows<Bf16Factors>{weights + (first + column) * in_, in_, width, in_}, width,
                        packed + column * stride_of(in_ / Bf16Factors::kValues));
      }
    };
    const Result result{.to = output, .stride = out_, .bias = bias, .relu = activation_ == Activation::kRelu};
    multiply_rows(threads_, {input, rows_, out_, in_, result}, pack, workspace);
  });
}

void TiledLinear::backward_input(Stream& stream, const Bf16* output_gradient, const Bf16* weights,
                                 const Destination& input_gradient, std::byte* workspace) const {
  stream.submit([this, output_gradient, weights, input_gradient, workspace] {
    const auto pack = [&](std::int64_t first, const Panels& panels, std::uint32_t* packed) {
      pack_panels({weights + first, in_}, panels, out_ / Bf16Factors::kValues, packed);
    };
    multiply_rows(threads_, {output_gradient, rows_, in_, out_, {.to = input_gradient, .stride = in_}}, pack,
                  workspace);
  });
}

void TiledLinear::backward_weights(Stream& stream, const Bf16* output_gradient, const Bf16* input,
                                   float* weight_gradient, GradientMode mode, std::byte* workspace) const {
  stream.submit([this, output_gradient, input, weight_gradient, mode, workspace] {
    auto* const sums = reinterpret_cast<float*>(workspace);
    std::byte* const packed = workspace + align_up(sums_bytes());
    const int parts = threads_ / groups_;
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int thread = 0; thread < threads_; ++thread) {
      const int group = thread / parts;
      const Range rows = Parts{rows_, kRows, groups_}[group];
      const Range outputs = Parts{out_, kLanes, parts}[thread % parts];
      float* const to = group == 0 ? weight_gradient : sums + (group - 1) * in_ * out_;
      sum_products({output_gradient, input, rows, outputs}, to, group == 0 && mode == GradientMode::kAdd,
                   packed + static_cast<std::size_t>(thread) * packed_gradient_bytes());
    }
    if (groups_ > 1) add_groups(sums, weight_gradient);
  });
}

// By blocks of rows, which are packed and multiplied while they are in the caches.
void TiledLinear::sum_products(const Part& part, float* to, bool adds, std::byte* workspace) const {
  auto* const groups = reinterpret_cast<std::uint32_t*>(workspace);
  std::uint32_t* const packed = groups + packed_gradient_bytes() / 2 / sizeof(std::uint32_t);
  const Parts all_outputs = gradient_parts(part.outputs.size()), all_inputs = gradient_parts(in_);
  for (std::int64_t row = part.rows.begin; row < part.rows.end; row += kBlockRows) {
    const std::int64_t pairs = std::min(kBlockRows, part.rows.end - row) / Bf16Factors::kValues;
    const Bf16 *const dy = part.output_gradient + row * out_ + part.outputs.begin, *const x =
                                                                                       part.input + row * in_;
    std::int64_t there = -1;  // inputs that are packed
    for (std::int64_t o = 0; o < all_outputs.count; ++o) {
      const Range outputs = all_outputs[o];
      pack_groups({dy + outputs.begin, out_}, outputs.size(), pairs, groups);
      for (std::int64_t i = 0; i < all_inputs.count; ++i) {
        const Range inputs = all_inputs[i];
        const Panels panels{inputs.size()};
        if (there != i) pack_panels({x + inputs.begin, in_}, panels, pairs, packed);
        there = i;
        Result result{.to = to, .stride = in_, .adds = adds || row > part.rows.begin};
        multiply_panels({.from = groups, .group = kRows * stride_of(pairs), .row = 1, .step = kRows},
                        outputs.size(), packed, panels, pairs,
                        result.at(part.outputs.begin + outputs.begin, inputs.begin));
      }
    }
  }
}

void TiledLinear::add_groups(const float* sums, float* weight_gradient) const {
  const std::int64_t weights = in_ * out_;
#pragma omp parallel for simd num_threads(threads_) schedule(static)
  for (std::int64_t i = 0; i < weights; ++i) {
    float sum = weight_gradient[i];
    for (int group = 1; group < groups_; ++group) sum += sums[(group - 1) * weights + i];
    weight_gradient[i] = sum;
  }
}

#else

bool TiledLinear::handles(const LinearSpec&) { return false; }
TiledLinear::TiledLinear(int threads, const LinearSpec& spec)
    : threads_(threads), rows_(spec.rows), in_(spec.in), out_(spec.out), activation_(spec.activation) {
  throw std::logic_error("no products in bf16 on this processor");
}
std::size_t TiledLinear::workspace_bytes() const { return 0; }
void TiledLinear::forward(Stream&, const Bf16*, const Bf16*, const float*, const Destination&,
                          std::byte*) const {}
void TiledLinear::backward_input(Stream&, const Bf16*, const Bf16*, const Destination&, std::byte*) const {}
void TiledLinear::backward_weights(Stream&, const Bf16*, const Bf16*, float*, GradientMode,
                                   std::byte*) const {}

#endif

}  // namespace pipeoptim::host
