#include "layers/host/weight_gradient.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "layers/host/bf16_instructions.h"
#include "layers/host/planning.h"

namespace pipeoptim::host {
namespace {

constexpr std::int64_t kKernel = 3;   // columns and rows of the kernel
constexpr std::int64_t kBlock = 16;   // channels of a block: the lanes of a vector
constexpr std::int64_t kOutputs = 8;  // of a tile: with 3 columns, sums in 24 registers
constexpr std::int64_t kNarrowWeights = 64 * 64 * kKernel * kKernel;
// Pixels times pairs that are packed together: a block of each factor takes a quarter of a MiB. Larger images
// are taken pair by pair.
constexpr std::int64_t kPixels = 2048;
constexpr std::int64_t kMostPixels = 2 * kPixels;

// Of floats or dwords.
std::size_t bytes_of(std::int64_t values) { return align_up(static_cast<std::size_t>(values) * 4); }

}  // namespace

std::int64_t PairedWeightGradient::Image::blocks() const { return channels / kBlock; }

PairedWeightGradient::Extents::Extents(const ConvolutionSpec& spec) {
  const Shape out = convolution_output(spec);
  records = spec.input[0], stride = spec.stride, padding = spec.padding;
  input = {spec.input[1], spec.input[2], spec.input[3]};
  output = {out[1], out[2], out[3]};
  weights = convolution_weights(spec);
}

PairedWeightGradient::Division PairedWeightGradient::division(const Extents& e) {
  return e.weights <= kNarrowWeights ? Division::kRecords : Division::kChannels;
}

bool PairedWeightGradient::divides(int threads, const Extents& e) {
  return division(e) == Division::kRecords ? e.records >= threads : keeps_busy(threads, e.output.blocks());
}

#if defined(__x86_64__)

bool PairedWeightGradient::handles(int threads, const ConvolutionSpec& spec) {
  const bool fits = spec.precision == MatrixPrecision::kBf16 && spec.kernel == kKernel && spec.padding <= 1 &&
                    spec.dilation == 1 && spec.groups == 1 && spec.input[3] % kBlock == 0 &&
                    spec.out_channels % kBlock == 0;
  if (!fits || !multiplies_bf16_pairs()) return false;
  const Extents extents(spec);
  return extents.input.pixels() <= kMostPixels && divides(threads, extents);
}

// The last of an odd number of records is paired with zeros.
PO_BF16_PAIRS void PairedWeightGradient::pack(const Image& image, const Range& blocks, const Bf16* first,
                                              std::int64_t records, std::uint32_t* packed) {
  const std::int64_t pairs = (records + 1) / 2, block_dwords = image.pixels() * pairs * kBlock;
  for (std::int64_t pixel = 0; pixel < image.pixels(); ++pixel) {
    for (std::int64_t pair = 0; pair < pairs; ++pair, packed += kBlock) {
      const Bf16* const values = first + 2 * pair * image.record() + pixel * image.channels;
      const Bf16* const others = 2 * pair + 1 < records ? values + image.record() : nullptr;
      for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
        _mm512_store_si512(packed + (block - blocks.begin) * block_dwords,
                           paired(values, others, block * kBlock));
      }
    }
  }
}

namespace {

using TileSums = __m512[kOutputs][kKernel];

// Adds the products of one output pixel with the input pixels that the columns kFirst to kLast of the kernel
// meet. `x` is what column 0 meets, which may lie outside.
template <int kFirst, int kLast>
PO_BF16_PAIRS [[gnu::always_inline]] inline void add_pixel(TileSums& all, const std::uint32_t* input,
                                                           std::int64_t x, const std::uint32_t* dy,
                                                           std::int64_t pairs) {
  const std::uint32_t* const from = input + (x + kFirst) * pairs * kBlock;
  for (std::int64_t at = 0; at < pairs * kBlock; at += kBlock) {
    __m512bh met[kKernel];
#pragma GCC unroll 3
    for (int k = kFirst; k <= kLast; ++k) {
      met[k] = (__m512bh)_mm512_load_si512(from + (k - kFirst) * pairs * kBlock + at);
    }
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      const __m512bh gradient = (__m512bh)_mm512_set1_epi32(static_cast<int>(dy[at + o]));
#pragma GCC unroll 3
      for (int k = kFirst; k <= kLast; ++k) all[o][k] = _mm512_dpbf16_ps(all[o][k], met[k], gradient);
    }
  }
}

}  // namespace

// Adds one row of the kernel between a block of input and half a block of output channels, from `output` on.
PO_BF16_PAIRS void PairedWeightGradient::multiply(const Extents& e, const Packed& packed, float* sums,
                                                  std::int64_t kernel_row, std::int64_t output) {
  const std::int64_t in = e.input.channels, out_step = kKernel * kKernel * in, pairs = packed.pairs;
  TileSums all;
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 3
    for (int k = 0; k < kKernel; ++k) all[o][k] = _mm512_loadu_ps(sums + o * out_step + k * in);
  }
  for (std::int64_t r = 0; r < e.output.rows; ++r) {
    const std::int64_t row = r * e.stride + kernel_row - e.padding;
    if (row < 0 || row >= e.input.rows) continue;
    for (std::int64_t c = 0; c < e.output.columns; ++c) {
      const std::uint32_t* const dy = packed.gradient + (r * e.output.columns + c) * pairs * kBlock + output;
      const std::int64_t column = c * e.stride - e.padding, x = row * e.input.columns + column;
      const bool left = column >= 0, right = column + kKernel <= e.input.columns;
      if (left && right) {
        add_pixel<0, 2>(all, packed.input, x, dy, pairs);
      } else if (left) {
        add_pixel<0, 1>(all, packed.input, x, dy, pairs);
      } else if (right) {
        add_pixel<1, 2>(all, packed.input, x, dy, pairs);
      } else {
        add_pixel<1, 1>(all, packed.input, x, dy, pairs);
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 3
    for (int k = 0; k < kKernel; ++k) _mm512_storeu_ps(sums + o * out_step + k * in, all[o][k]);
  }
}

#else

bool PairedWeightGradient::handles(int, const ConvolutionSpec&) { return false; }
void PairedWeightGradient::pack(const Image&, const Range&, const Bf16*, std::int64_t, std::uint32_t*) {}
void PairedWeightGradient::multiply(const Extents&, const Packed&, float*, std::int64_t, std::int64_t) {}

#endif

PairedWeightGradient::PairedWeightGradient(int threads, const ConvolutionSpec& spec)
    : threads_(threads), extents_(spec), division_(division(extents_)) {
  if (!handles(threads, spec)) throw std::logic_error(describe(spec) + ": not for this weight gradient");
  const Extents& e = extents_;
  const bool by_records = division_ == Division::kRecords;
  const std::int64_t records = by_records ? quotient_up(e.records, threads) : e.records;
  const std::int64_t out_blocks = by_records ? e.output.blocks() : quotient_up(e.output.blocks(), threads);
  const std::int64_t pixels = std::max(e.input.pixels(), e.output.pixels());
  pairs_ = std::clamp<std::int64_t>(kPixels / pixels, 1, quotient_up(records, 2));
  sums_bytes_ = bytes_of((by_records ? threads : 1) * e.weights);
  input_bytes_ = bytes_of(e.input.blocks() * e.input.pixels() * pairs_ * kBlock);
  part_bytes_ = input_bytes_ + bytes_of(out_blocks * e.output.pixels() * pairs_ * kBlock);
  workspace_bytes_ = sums_bytes_ + part_bytes_ * static_cast<std::size_t>(threads);
}

PairedWeightGradient::Part PairedWeightGradient::part(float* sums, std::byte* workspace, int thread) const {
  const Extents& e = extents_;
  std::byte* const input = workspace + sums_bytes_ + part_bytes_ * static_cast<std::size_t>(thread);
  Part part{{0, e.records},
            {0, e.output.blocks()},
            sums,
            reinterpret_cast<std::uint32_t*>(input),
            reinterpret_cast<std::uint32_t*>(input + input_bytes_)};
  if (division_ == Division::kRecords) {
    part.records = Parts{e.records, 1, threads_}[thread];
    part.sums += thread * e.weights;
  } else {
    part.output_blocks = Parts{e.output.blocks(), 1, threads_}[thread];
  }
  return part;
}

void PairedWeightGradient::sum(const Part& part, const Bf16* input, const Bf16* output_gradient) const {
  if (part.output_blocks.size() == 0) return;
  const Extents& e = extents_;
  const std::int64_t block_weights = kBlock * kKernel * kKernel * e.input.channels;
  std::fill(part.sums + part.output_blocks.begin * block_weights,
            part.sums + part.output_blocks.end * block_weights, 0.0F);
  for (std::int64_t first = part.records.begin; first < part.records.end; first += 2 * pairs_) {
    const std::int64_t records = std::min(2 * pairs_, part.records.end - first);
    pack(e.input, {0, e.input.blocks()}, input + first * e.input.record(), records, part.input);
    pack(e.output, part.output_blocks, output_gradient + first * e.output.record(), records, part.gradient);
    multiply_blocks(part, quotient_up(records, 2));
  }
}

// What is packed.
void PairedWeightGradient::multiply_blocks(const Part& part, std::int64_t pairs) const {
  const Extents& e = extents_;
  const std::int64_t row_weights = kKernel * e.input.channels, out_weights = kKernel * row_weights;
  for (std::int64_t i = 0; i < e.input.blocks(); ++i) {
    const std::uint32_t *const x = part.input + i * e.input.pixels() * pairs * kBlock, *dy = part.gradient;
    for (std::int64_t o = part.output_blocks.begin; o < part.output_blocks.end; ++o) {
      float* const sums = part.sums + o * kBlock * out_weights + i * kBlock;
      for (std::int64_t row = 0; row < kKernel; ++row) {
        for (std::int64_t output = 0; output < kBlock; output += kOutputs) {
          multiply(e, {x, dy, pairs}, sums + output * out_weights + row * row_weights, row, output);
        }
      }
      dy += e.output.pixels() * pairs * kBlock;
    }
  }
}

void PairedWeightGradient::run(Stream& stream, const Bf16* input, const Bf16* output_gradient,
                               float* weight_gradient, GradientMode mode, std::byte* workspace) const {
  require_threads("convolution", threads_, stream);
  stream.submit([this, input, output_gradient, weight_gradient, mode, workspace] {
    const bool in_place = division_ == Division::kChannels && mode == GradientMode::kStore;
    float* const sums = in_place ? weight_gradient : reinterpret_cast<float*>(workspace);
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int thread = 0; thread < threads_; ++thread) {
      sum(part(sums, workspace, thread), input, output_gradient);
    }
    const int parts = division_ == Division::kRecords ? threads_ : 1;
    if (!in_place) add_parts(threads_, sums, parts, extents_.weights, mode, weight_gradient);
  });
}

}  // namespace pipeoptim::host
