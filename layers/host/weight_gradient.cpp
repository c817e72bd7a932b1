#include "layers/host/weight_gradient.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/runtime/buffer.h"
#include "layers/host/bf16_instructions.h"

namespace pipeoptim::host {
namespace {

constexpr std::int64_t kKernel = 3;   // columns and rows of the kernel
constexpr std::int64_t kInputs = 16;  // input channels of a block: the lanes of a vector
constexpr std::int64_t kOutputs = 8;  // output channels of a block: with 3 columns, sums in 24 registers
constexpr std::int64_t kBlockSums = kOutputs * kKernel * kInputs;   // of one row of the kernel
constexpr std::int64_t kMostWeights = 64 * 64 * kKernel * kKernel;  // above, oneDNN is as fast
constexpr std::int64_t kMostDwords = 131072;                        // of a packed record: half a MiB

// Of floats or dwords.
std::size_t bytes_of(std::int64_t values) { return align_up(static_cast<std::size_t>(values) * 4); }

}  // namespace

#if defined(__x86_64__)

bool NarrowWeightGradient::handles(int threads, const ConvolutionSpec& spec) {
  const bool fits = spec.precision == MatrixPrecision::kBf16 && spec.kernel == kKernel &&
                    spec.dilation == 1 && spec.groups == 1 && spec.input[3] % kInputs == 0 &&
                    spec.out_channels % kOutputs == 0 && convolution_weights(spec) <= kMostWeights;
  if (!fits || spec.input[0] < threads || !multiplies_bf16_pairs()) return false;
  const Extents extents(spec);
  return extents.input + extents.gradient <= kMostDwords;
}

// 8 values as dwords; null stands for zeros.
PO_BF16_PAIRS static inline __m256i widened8(const Bf16* values) {
  if (values == nullptr) return _mm256_setzero_si256();
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

// [row][block][pair]: the input that the columns 0, 1 and 2 of the kernel meet. With stride 1 column 2 meets
// what column 0 meets at the next pair.
PO_BF16_PAIRS void NarrowWeightGradient::pack_input(const Extents& e, const Bf16* record,
                                                    std::uint32_t* packed) {
  for (std::int64_t r = 0; r < e.rows; ++r) {
    const Bf16* const row = record + r * e.columns * e.channels;
    for (std::int64_t block = 0; block < e.input_blocks; ++block) {
      const auto pixel = [&](std::int64_t column) {
        const bool inside = column >= 0 && column < e.columns;
        return inside ? row + column * e.channels + block * kInputs : nullptr;
      };
      for (std::int64_t v = 0; v < e.row; ++v, packed += kInputs) {
        const std::int64_t first = v / e.step * 2 * e.stride + v % e.step - e.padding;
        const __m512i second = _mm512_slli_epi32(widened(pixel(first + e.stride)), 16);
        _mm512_store_si512(packed, _mm512_or_si512(widened(pixel(first)), second));
      }
    }
  }
}

// [row][block][pair], 8 dwords each.
PO_BF16_PAIRS void NarrowWeightGradient::pack_gradient(const Extents& e, const Bf16* record,
                                                       std::uint32_t* packed) {
  for (std::int64_t r = 0; r < e.out_rows; ++r) {
    const Bf16* const row = record + r * e.out_columns * e.out_channels;
    for (std::int64_t block = 0; block < e.output_blocks; ++block) {
      const Bf16* pixel = row + block * kOutputs;
      for (std::int64_t pair = 0; pair < e.pairs; ++pair, pixel += 2 * e.out_channels, packed += kOutputs) {
        const Bf16* const second = 2 * pair + 1 < e.out_columns ? pixel + e.out_channels : nullptr;
        const __m256i pairs = _mm256_or_si256(widened8(pixel), _mm256_slli_epi32(widened8(second), 16));
        _mm256_store_si256(reinterpret_cast<__m256i*>(packed), pairs);
      }
    }
  }
}

// Adds one row of the kernel between a block of input and one of output channels, of all packed records. Its
// sums stay in registers: for a pair 3 loads of the input, 8 of the gradient and 24 products.
PO_BF16_PAIRS void NarrowWeightGradient::multiply(const Extents& e, const Part& part, std::int64_t records,
                                                  std::int64_t output_block, std::int64_t input_block,
                                                  std::int64_t kernel_row) {
  float* const sums =
      part.sums + ((output_block * e.input_blocks + input_block) * kKernel + kernel_row) * kBlockSums;
  __m512 all[kOutputs][kKernel];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 3
    for (int k = 0; k < kKernel; ++k) all[o][k] = _mm512_load_ps(sums + (o * kKernel + k) * kInputs);
  }
  for (std::int64_t record = 0; record < records; ++record) {
    for (std::int64_t r = 0; r < e.out_rows; ++r) {
      const std::int64_t from = r * e.stride + kernel_row - e.padding;
      if (from < 0 || from >= e.rows) continue;
      const std::uint32_t* x =
          part.input + record * e.input + (from * e.input_blocks + input_block) * e.row * kInputs;
      const std::uint32_t* dy =
          part.gradient + record * e.gradient + (r * e.output_blocks + output_block) * e.pairs * kOutputs;
      for (std::int64_t pair = 0; pair < e.pairs; ++pair, x += e.step * kInputs, dy += kOutputs) {
        __m512bh met[kKernel];
#pragma GCC unroll 3
        for (int k = 0; k < kKernel; ++k) met[k] = (__m512bh)_mm512_load_si512(x + k * kInputs);
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) {
          const __m512bh gradient = (__m512bh)_mm512_set1_epi32(static_cast<int>(dy[o]));
#pragma GCC unroll 3
          for (int k = 0; k < kKernel; ++k) all[o][k] = _mm512_dpbf16_ps(all[o][k], met[k], gradient);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 3
    for (int k = 0; k < kKernel; ++k) _mm512_store_ps(sums + (o * kKernel + k) * kInputs, all[o][k]);
  }
}

#else

bool NarrowWeightGradient::handles(int, const ConvolutionSpec&) { return false; }
void NarrowWeightGradient::pack_input(const Extents&, const Bf16*, std::uint32_t*) {}
void NarrowWeightGradient::pack_gradient(const Extents&, const Bf16*, std::uint32_t*) {}
void NarrowWeightGradient::multiply(const Extents&, const Part&, std::int64_t, std::int64_t, std::int64_t,
                                    std::int64_t) {}

#endif

NarrowWeightGradient::Extents::Extents(const ConvolutionSpec& spec) {
  const Shape out = convolution_output(spec);
  records = spec.input[0], rows = spec.input[1], columns = spec.input[2], channels = spec.input[3];
  out_rows = out[1], out_columns = out[2], out_channels = out[3];
  stride = spec.stride, padding = spec.padding;
  pairs = (out_columns + 1) / 2;
  step = stride == 1 ? 2 : kKernel;
  row = pairs * step + (stride == 1 ? 1 : 0);
  input_blocks = channels / kInputs;
  output_blocks = out_channels / kOutputs;
  input = rows * input_blocks * row * kInputs;
  gradient = out_rows * output_blocks * pairs * kOutputs;
  sums = output_blocks * input_blocks * kKernel * kBlockSums;
  // Small records together: sums are loaded less often.
  constexpr std::int64_t kPackedDwords = 32768;
  group = std::clamp<std::int64_t>(kPackedDwords / (input + gradient), 1, 8);
}

NarrowWeightGradient::NarrowWeightGradient(int threads, const ConvolutionSpec& spec)
    : threads_(threads), extents_(spec) {
  if (!handles(threads, spec)) throw std::logic_error(describe(spec) + ": not for this weight gradient");
  const Extents& e = extents_;
  part_bytes_ = bytes_of(e.sums) + bytes_of(e.group * e.input) + bytes_of(e.group * e.gradient);
  workspace_bytes_ = part_bytes_ * static_cast<std::size_t>(threads);
}

NarrowWeightGradient::Part NarrowWeightGradient::part(std::byte* workspace, int thread) const {
  std::byte* const begin = workspace + part_bytes_ * static_cast<std::size_t>(thread);
  std::byte* const input = begin + bytes_of(extents_.sums);
  std::byte* const gradient = input + bytes_of(extents_.group * extents_.input);
  return {reinterpret_cast<float*>(begin), reinterpret_cast<std::uint32_t*>(input),
          reinterpret_cast<std::uint32_t*>(gradient)};
}

void NarrowWeightGradient::sum_records(const Bf16* input, const Bf16* output_gradient, const Part& part,
                                       std::int64_t begin, std::int64_t end) const {
  const Extents& e = extents_;
  std::fill_n(part.sums, e.sums, 0.0F);
  for (std::int64_t first = begin; first < end; first += e.group) {
    const std::int64_t records = std::min(e.group, end - first);
    for (std::int64_t i = 0; i < records; ++i) {
      pack_input(e, input + (first + i) * e.rows * e.columns * e.channels, part.input + i * e.input);
      pack_gradient(e, output_gradient + (first + i) * e.out_rows * e.out_columns * e.out_channels,
                    part.gradient + i * e.gradient);
    }
    for (std::int64_t i = 0; i < e.input_blocks; ++i) {
      for (std::int64_t o = 0; o < e.output_blocks; ++o) {
        for (std::int64_t row = 0; row < kKernel; ++row) multiply(e, part, records, o, i, row);
      }
    }
  }
}

// The threads' sums of one output channel, to where the weights lie: [out, kh, kw, in].
void NarrowWeightGradient::store(std::byte* workspace, std::int64_t channel, float* weight_gradient,
                                 GradientMode mode) const {
  const Extents& e = extents_;
  float* to = weight_gradient + channel * kKernel * kKernel * e.channels;
  for (std::int64_t tap = 0; tap < kKernel * kKernel; ++tap) {
    for (std::int64_t block = 0; block < e.input_blocks; ++block, to += kInputs) {
      const std::int64_t row = (channel / kOutputs * e.input_blocks + block) * kKernel + tap / kKernel;
      const std::int64_t at = row * kBlockSums + (channel % kOutputs * kKernel + tap % kKernel) * kInputs;
      for (std::int64_t i = 0; i < kInputs; ++i) {
        float sum = 0;
        for (int thread = 0; thread < threads_; ++thread) sum += part(workspace, thread).sums[at + i];
        to[i] = mode == GradientMode::kAdd ? to[i] + sum : sum;
      }
    }
  }
}

void NarrowWeightGradient::run(Stream& stream, const Bf16* input, const Bf16* output_gradient,
                               float* weight_gradient, GradientMode mode, std::byte* workspace) const {
  stream.submit([this, input, output_gradient, weight_gradient, mode, workspace] {
    const std::int64_t records = extents_.records, channels = extents_.out_channels;
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int thread = 0; thread < threads_; ++thread) {
      sum_records(input, output_gradient, part(workspace, thread), records * thread / threads_,
                  records * (thread + 1) / threads_);
    }
#pragma omp parallel for num_threads(threads_) schedule(static)
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      store(workspace, channel, weight_gradient, mode);
    }
  });
}

}  // namespace pipeoptim::host
