#include "layers/host/tiled_linear.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "layers/host/panels.h"
#include "layers/host/planning.h"
#include "layers/typed.h"

namespace pipeoptim::host {

#if defined(__x86_64__)

namespace {

// What is worth it was measured with two threads and features from 256 to 2048. Of a weight gradient a group
// sums at least so many rows, for pieces of at least so many features.
constexpr std::int64_t kLeastRows = 512, kMostFeatures = 2048, kGroupRows = 1024, kLeastPiece = 64;

// Into pieces, or its outputs.
bool cuts_inputs(const LinearSpec& spec) { return spec.in >= spec.out; }

// Whether so many groups get enough of a weight gradient, and all threads about the same.
bool divides(int groups, int threads, const LinearSpec& spec) {
  if (threads % groups != 0) return false;
  const bool enough = spec.rows >= groups * kGroupRows && std::max(spec.in, spec.out) >= groups * kLeastPiece;
  if (groups > 1 && !enough) return false;
  const std::int64_t inputs = spec.in / kLanes, outputs = spec.out / kLanes;
  if (!cuts_inputs(spec)) return keeps_busy(threads, outputs);
  return keeps_busy(groups, inputs) && keeps_busy(threads / groups, outputs);
}

// Of rows, for weight gradients, as many as there can be; pieces are as many. 0 where none divide the work.
int row_groups(int threads, const LinearSpec& spec) {
  int groups = threads;
  while (groups > 0 && !divides(groups, threads, spec)) --groups;
  return groups;
}

// rows . columns to a result: rows x inner, inner x columns.
struct RowProduct {
  Factor from;  // the rows, as they lie
  std::int64_t rows, columns, inner;
  Result result;
};

// Of such products: what is packed of the columns, and rows that meet it before the next ones. Both stay in
// the second-level cache.
constexpr std::int64_t kPackedValues = 256 * 1024, kChunk = 128;

Parts packed_parts(std::int64_t columns, std::int64_t inner) {
  const std::int64_t most = kPackedValues / inner / kLanes * kLanes;
  return Parts::of_at_most(std::max(most, kPanel), columns, kLanes);
}

std::size_t columns_bytes(std::int64_t columns, std::int64_t inner) {
  return packed_bytes(inner, packed_parts(columns, inner).largest());
}

// What a thread needs: which rows are next, columns, and a chunk of rows to round.
std::size_t row_product_bytes(std::int64_t columns, std::int64_t inner, ElementType rows) {
  const std::size_t chunk = static_cast<std::size_t>(kChunk * inner) * sizeof(Bf16);
  return kAlignment + columns_bytes(columns, inner) + (rows == ElementType::kBf16 ? 0 : align_up(chunk));
}

PO_BF16_PAIRS void round_chunk(const float* values, std::int64_t count, Bf16* to) {
  for (std::int64_t i = 0; i < count; i += 2 * kLanes) {
    Bf16Factors::store(to + i, {_mm512_loadu_ps(values + i), _mm512_loadu_ps(values + i + kLanes)});
  }
}

// Takes the next rows of a share: a chunk, towards the end less, so that the last ones are soon done.
Range take_rows(std::int64_t& place, std::int64_t end) {
  constexpr std::int64_t kFew = 2 * kRows;
  const std::atomic_ref<std::int64_t> next(place);
  std::int64_t begin = next.load(std::memory_order_relaxed);
  while (begin < end) {
    const std::int64_t half = quotient_up(end - begin, 2 * kRows) * kRows;
    const std::int64_t behind = std::min(end, begin + std::clamp(half, kFew, kChunk));
    if (next.compare_exchange_weak(begin, behind, std::memory_order_relaxed)) return {begin, behind};
  }
  return {end, end};
}

// A thread's memory.
struct Own {
  std::int64_t* next;  // of its share's rows
  std::uint32_t* packed;
  Bf16* chunk;
};

// Some rows by the columns of a part, which the thread has packed.
void multiply_chunks(const RowProduct& product, Range rows, Range columns, const Own& own) {
  const std::int64_t inner = product.inner, dwords = inner / Bf16Factors::kValues;
  const bool rounded = product.from.rounded != nullptr;
  for (std::int64_t row = rows.begin; row < rows.end; row += kChunk) {
    const std::int64_t count = std::min(kChunk, rows.end - row);
    if (!rounded) round_chunk(product.from.values + row * inner, count * inner, own.chunk);
    const Bf16* const from = rounded ? product.from.rounded + row * inner : own.chunk;
    multiply_panels({.from = reinterpret_cast<const std::uint32_t*>(from),
                     .tile = kRows * dwords,
                     .row = dwords,
                     .step = 1},
                    count, own.packed, Panels{columns.size()}, dwords, product.result.at(row, columns.begin));
  }
}

// Each thread for its rows; in the last part of the columns, when they are done, also for those that another
// thread has left. pack(first, panels, to) packs columns from the first one on.
template <typename Pack>
void multiply_share(int threads, const RowProduct& product, const Pack& pack, std::size_t thread_bytes,
                    std::byte* workspace) {
  const Parts parts = packed_parts(product.columns, product.inner);
  const Parts shares{product.rows, kRows, threads};
  const auto own_of = [=](int thread) {
    std::byte* const memory = workspace + static_cast<std::size_t>(thread) * thread_bytes;
    std::byte* const packed = memory + kAlignment;
    return Own{reinterpret_cast<std::int64_t*>(memory), reinterpret_cast<std::uint32_t*>(packed),
               reinterpret_cast<Bf16*>(packed + columns_bytes(product.columns, product.inner))};
  };
  for (int thread = 0; thread < threads; ++thread) *own_of(thread).next = shares[thread].begin;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int thread = 0; thread < threads; ++thread) {
    const Own own = own_of(thread);
    for (std::int64_t part = 0; part < parts.count; ++part) {
      pack(parts[part].begin, Panels{parts[part].size()}, own.packed);
      if (part + 1 < parts.count) multiply_chunks(product, shares[thread], parts[part], own);
    }
    for (int i = 0; i < threads; ++i) {
      const int share = (thread + i) % threads;
      const auto take = [&] { return take_rows(*own_of(share).next, shares[share].end); };
      for (Range rows = take(); rows.size() > 0; rows = take()) {
        multiply_chunks(product, rows, parts[parts.count - 1], own);
      }
    }
  }
}

// Of weight gradients: what is packed together of both factors, and rows of a block of them.
constexpr std::int64_t kPackedColumns = 256, kBlockRows = 1024;

Parts gradient_parts(std::int64_t columns) { return Parts::of_at_most(kPackedColumns, columns, kLanes); }

// Calls use(source) for the part of a factor from a row and a column on.
template <typename Use>
void with_source(const Factor& all, std::int64_t row, std::int64_t columns, std::int64_t column,
                 const Use& use) {
  with_type_of(all, [&]<typename Value>() {
    use(Source<Value>{values_of<Value>(all) + row * columns + column, columns});
  });
}

}  // namespace

bool TiledLinear::handles(int threads, const LinearSpec& spec) {
  const auto fills = [](std::int64_t features) {
    return features % kLanes == 0 && features >= 2 * kLanes && features <= kMostFeatures;
  };
  if (spec.precision != MatrixPrecision::kBf16 || !multiplies_bf16_pairs() || spec.rows % kRows != 0 ||
      spec.rows < kLeastRows || !fills(spec.in) || !fills(spec.out)) {
    return false;
  }
  return row_groups(threads, spec) > 0;
}

TiledLinear::TiledLinear(int threads, const LinearSpec& spec)
    : threads_(threads), spec_(spec), groups_(row_groups(threads, spec)) {
  if (!handles(threads, spec)) throw std::logic_error(describe(spec) + ": not for these tiles");
  const auto count = static_cast<std::size_t>(threads);
  workspace_.reserve(std::max(count * product_bytes(),
                              sums_bytes() + count * (factor_bytes(spec.out) + factor_bytes(spec.in))));
}

// The bias gradients of the groups but the first, which sums where they go.
std::size_t TiledLinear::sums_bytes() const {
  return align_up(static_cast<std::size_t>((groups_ - 1) * spec_.out) * sizeof(float));
}

// Of a thread, for what it packs of a factor of the weight gradient.
std::size_t TiledLinear::factor_bytes(std::int64_t columns) const {
  return packed_bytes(std::min(kBlockRows, spec_.rows), std::min(kPackedColumns, columns));
}

// Of a thread, for either of the products whose rows are the map's.
std::size_t TiledLinear::product_bytes() const {
  return std::max(row_product_bytes(spec_.out, spec_.in, spec_.types.input),
                  row_product_bytes(spec_.in, spec_.out, spec_.types.output));
}

void TiledLinear::forward(Stream& stream, const LinearForward& operands, std::byte* workspace) const {
  require_threads("linear", threads_, stream);
  stream.submit([this, operands, workspace] {
    const std::int64_t in = spec_.in;
    const auto pack = [&](std::int64_t first, const Panels& all, std::uint32_t* packed) {
      with_type_of(operands.weights, [&]<typename Value>() {
        for (std::int64_t panel = 0; panel < all.count(); ++panel) {
          const std::int64_t column = all.begin(panel), width = all.width(panel);
          const Value* const weights = values_of<Value>(operands.weights) + (first + column) * in;
          pack_transposed(Rows<Bf16Factors, Value>{weights, in, width, in}, width,
                          packed + column * stride_of(in / Bf16Factors::kValues));
        }
      });
    };
    const Result result{.to = operands.output,
                        .stride = spec_.out,
                        .bias = operands.bias,
                        .relu = spec_.activation == Activation::kRelu};
    multiply_share(
        threads_,
        {.from = operands.input, .rows = spec_.rows, .columns = spec_.out, .inner = in, .result = result},
        pack, product_bytes(), workspace);
  });
}

void TiledLinear::backward_input(Stream& stream, const LinearBackwardInput& operands,
                                 std::byte* workspace) const {
  require_threads("linear", threads_, stream);
  stream.submit([this, operands, workspace] {
    const std::int64_t in = spec_.in, out = spec_.out;
    const auto pack = [&](std::int64_t first, const Panels& panels, std::uint32_t* packed) {
      with_source(operands.weights, 0, in, first, [&](const auto& weights) {
        pack_panels(weights, panels, out / Bf16Factors::kValues, packed);
      });
    };
    const Result result{.to = operands.input_gradient, .stride = in};
    multiply_share(
        threads_,
        {.from = operands.output_gradient, .rows = spec_.rows, .columns = in, .inner = out, .result = result},
        pack, product_bytes(), workspace);
  });
}

// In each turn a group has the next piece. Its sums of the outputs' gradients, which it makes while it packs
// these, go to `sums` unless it is the first one.
TiledLinear::Part TiledLinear::part_of(const LinearBackwardWeights& operands, int thread, int turn,
                                       float* sums) const {
  const int parts = threads_ / groups_, group = thread / parts;
  const bool cuts = cuts_inputs(spec_), sums_bias = operands.bias_gradient != nullptr && (turn == 0 || !cuts);
  const Range piece = Parts{cuts ? spec_.in : spec_.out, kLanes, groups_}[(group + turn) % groups_];
  const Range outputs = cuts ? Range{0, spec_.out} : piece;
  const Range mine = Parts{outputs.size(), kLanes, parts}[thread % parts];
  float* const bias_gradient = group == 0 ? operands.bias_gradient : sums + (group - 1) * spec_.out;
  const bool adds = operands.mode == GradientMode::kAdd;
  return {.rows = Parts{spec_.rows, kRows, groups_}[group],
          .outputs = {outputs.begin + mine.begin, outputs.begin + mine.end},
          .inputs = cuts ? piece : Range{0, spec_.in},
          .first = turn == 0,
          .adds = adds || turn > 0,
          .bias_gradient = sums_bias ? bias_gradient : nullptr,
          .adds_bias = adds && group == 0};
}

void TiledLinear::backward_weights(Stream& stream, const LinearBackwardWeights& operands,
                                   std::byte* workspace) const {
  require_threads("linear", threads_, stream);
  stream.submit([this, operands, workspace] {
    auto* const sums = reinterpret_cast<float*>(workspace);
    std::byte* const packed = workspace + sums_bytes();
    const std::size_t thread_bytes = factor_bytes(spec_.out) + factor_bytes(spec_.in);
    for (int turn = 0; turn < groups_; ++turn) {
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
      for (int thread = 0; thread < threads_; ++thread) {
        sum_products(operands, part_of(operands, thread, turn, sums),
                     packed + static_cast<std::size_t>(thread) * thread_bytes);
      }
    }
    if (operands.bias_gradient == nullptr || groups_ == 1) return;
    for (std::int64_t i = 0; i < (groups_ - 1) * spec_.out; ++i) {
      operands.bias_gradient[i % spec_.out] += sums[i];
    }
  });
}

// By blocks of rows, which are packed and multiplied while they are in the caches. A factor that is whole in
// one block of them stays packed for its next product, also that of the next turn where it is not cut.
void TiledLinear::sum_products(const LinearBackwardWeights& operands, const Part& part,
                               std::byte* workspace) const {
  auto* const eights = reinterpret_cast<std::uint32_t*>(workspace);
  std::uint32_t* const packed = eights + factor_bytes(spec_.out) / sizeof(std::uint32_t);
  const Parts all_outputs = gradient_parts(part.outputs.size());
  const Parts all_inputs = gradient_parts(part.inputs.size());
  const Parts blocks = Parts::of_at_most(kBlockRows, part.rows.size(), kRows);
  const bool later = !part.first && blocks.count == 1;
  const bool has_outputs = later && cuts_inputs(spec_) && all_outputs.count == 1;
  const bool has_inputs = later && !cuts_inputs(spec_) && all_inputs.count == 1;
  for (std::int64_t block = 0; block < blocks.count; ++block) {
    const std::int64_t row = part.rows.begin + blocks[block].begin;
    const std::int64_t pairs = blocks[block].size() / Bf16Factors::kValues;
    const bool first_rows = block == 0;
    for (std::int64_t o = 0; o < all_outputs.count; ++o) {
      const std::int64_t output = part.outputs.begin + all_outputs[o].begin, outputs = all_outputs[o].size();
      if (!has_outputs) {
        alignas(64) float sums[kPackedColumns] = {};
        with_source(operands.output_gradient, row, spec_.out, output, [&](const auto& dy) {
          pack_eights(dy, outputs, pairs, eights, part.bias_gradient == nullptr ? nullptr : sums);
        });
        if (part.bias_gradient != nullptr) {
          float* const to = part.bias_gradient + output;
          const bool adds = part.adds_bias || !first_rows;
          for (std::int64_t c = 0; c < outputs; ++c) to[c] = adds ? to[c] + sums[c] : sums[c];
        }
      }
      for (std::int64_t i = 0; i < all_inputs.count; ++i) {
        const std::int64_t input = part.inputs.begin + all_inputs[i].begin;
        const Panels panels{all_inputs[i].size()};
        if (!has_inputs && (o == 0 || all_inputs.count > 1)) {
          with_source(operands.input, row, spec_.in, input,
                      [&](const auto& x) { pack_panels(x, panels, pairs, packed); });
        }
        const Result result{
            .to = operands.weight_gradient, .stride = spec_.in, .adds = part.adds || !first_rows};
        multiply_panels({.from = eights, .tile = kRows * stride_of(pairs), .row = 1, .step = kRows}, outputs,
                        packed, panels, pairs, result.at(output, input));
      }
    }
  }
}

#else

bool TiledLinear::handles(int, const LinearSpec&) { return false; }
TiledLinear::TiledLinear(int threads, const LinearSpec& spec) : threads_(threads), spec_(spec), groups_(1) {
  throw std::logic_error("no products in bf16 on this processor");
}
void TiledLinear::forward(Stream&, const LinearForward&, std::byte*) const {}
void TiledLinear::backward_input(Stream&, const LinearBackwardInput&, std::byte*) const {}
void TiledLinear::backward_weights(Stream&, const LinearBackwardWeights&, std::byte*) const {}

#endif

}  // namespace pipeoptim::host
