#include "layers/host/winograd.h"

#include <algorithm>
#include <stdexcept>

namespace pipeoptim::host {

using namespace winograd;

const Code* winograd::best_code() {
  const Code* const best = avx512_code();
  return best != nullptr ? best : avx2_code();
}

namespace {

// Channels in times channels out that are narrow: sums of half a MiB.
constexpr std::int64_t kNarrow = 64 * 128;
constexpr std::int64_t kFewestChannels = 64;  // in and out together, for a weight gradient
// A weight is transformed in some 16 cycles, and saves 1.25 for a tile.
constexpr std::int64_t kFewestTiles = 96;

Images images_of(const ConvolutionSpec& spec, std::int64_t channels) {
  return {spec.input[1], spec.input[2], channels, quotient_up(spec.input[1], 2),
          quotient_up(spec.input[2], 2)};
}

std::int64_t tiles_of(const ConvolutionSpec& spec) {
  return spec.input[0] * quotient_up(spec.input[1], 2) * quotient_up(spec.input[2], 2);
}

}  // namespace

bool WinogradConvolution::handles(int threads, const ConvolutionSpec& spec) {
  const bool fits = spec.precision != MatrixPrecision::kBf16 && spec.kernel == kKernel && spec.stride == 1 &&
                    spec.padding == 1 && spec.dilation == 1 && spec.groups == 1 &&
                    spec.input[3] % kGroup == 0 && spec.out_channels % kGroup == 0;
  return fits && tiles_of(spec) >= std::max(kFewestTiles, threads * kTiles) && best_code() != nullptr;
}

bool WinogradConvolution::handles_weights(int threads, const ConvolutionSpec& spec) {
  const std::int64_t products = spec.input[3] * spec.out_channels;
  const bool divides = products <= kNarrow || keeps_busy(threads, spec.out_channels / kGroup);
  return handles(threads, spec) && spec.input[3] + spec.out_channels >= kFewestChannels && divides;
}

WinogradConvolution::WinogradConvolution(int threads, const ConvolutionSpec& spec, const Code* code)
    : threads_(threads),
      code_(code),
      in_(images_of(spec, spec.input[3])),
      out_(images_of(spec, spec.out_channels)),
      tiles_(tiles_of(spec)),
      division_(products() <= kNarrow ? Division::kTiles : Division::kChannels) {
  if (!handles(threads, spec)) throw std::logic_error(describe(spec) + ": not for Winograd's algorithm");
  const int sums = division_ == Division::kTiles ? threads_ : 1;
  const std::int64_t forward = std::max(in_.channels, out_.channels) + 2 * kGroup;
  scratch_floats_ = kPoints * kRoom * std::max(forward, in_.channels + out_.channels);
  all_points_ = workspace_.reserve(float_bytes(sums * kPoints * products()));
  scratch_ = workspace_.reserve(float_bytes(threads_ * scratch_floats_));
}

float* WinogradConvolution::all_points(std::byte* workspace) const {
  return reinterpret_cast<float*>(workspace + all_points_);
}

float* WinogradConvolution::scratch(std::byte* workspace, int thread) const {
  return reinterpret_cast<float*>(workspace + scratch_) + thread * scratch_floats_;
}

void WinogradConvolution::transform_weights(const float* weights, decltype(Code::transform_forward) transform,
                                            std::byte* workspace) const {
  float* const to = all_points(workspace);
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (std::int64_t output = 0; output < out_.channels; ++output) {
    transform(weights + output * kKernel * kKernel * in_.channels, in_.channels, out_.channels, output, to);
  }
}

void WinogradConvolution::convolve(const Images& from, const float* values, const Images& to,
                                   const float* bias, float* results, std::byte* workspace) const {
  const float* const weights = all_points(workspace);
  const std::int64_t blocks = quotient_up(tiles_, kTiles);
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
  for (int thread = 0; thread < threads_; ++thread) {
    for (std::int64_t b = blocks * thread / threads_; b < blocks * (thread + 1) / threads_; ++b) {
      const std::int64_t first = b * kTiles, count = std::min(kTiles, tiles_ - first);
      code_->convolve_tiles(from, values, to, weights, bias, results, first, count,
                            scratch(workspace, thread));
    }
  }
}

void WinogradConvolution::forward(Stream& stream, const float* input, const float* weights, const float* bias,
                                  float* output, std::byte* workspace) const {
  stream.submit([=, this] {
    transform_weights(weights, code_->transform_forward, workspace);
    convolve(in_, input, out_, bias, output, workspace);
  });
}

void WinogradConvolution::backward_data(Stream& stream, const float* weights, const float* output_gradient,
                                        float* input_gradient, std::byte* workspace) const {
  stream.submit([=, this] {
    transform_weights(weights, code_->transform_flipped, workspace);
    convolve(out_, output_gradient, in_, nullptr, input_gradient, workspace);
  });
}

WinogradConvolution::Part WinogradConvolution::part(std::byte* workspace, int thread) const {
  float* const sums = all_points(workspace);
  if (division_ == Division::kTiles) {
    return {Parts{tiles_, 1, threads_}[thread], {0, out_.channels}, sums + thread * kPoints * products()};
  }
  return {{0, tiles_}, Parts{out_.channels, kGroup, threads_}[thread], sums};
}

void WinogradConvolution::sum(const Part& part, const float* input, const float* output_gradient,
                              float* scratch) const {
  if (part.channels.size() == 0) return;
  float* const gradients = scratch + kPoints * kRoom * in_.channels;
  float* const sums = part.sums + part.channels.begin * in_.channels;
  for (std::int64_t p = 0; p < kPoints; ++p)
    std::fill_n(sums + p * products(), part.channels.size() * in_.channels, 0.0F);
  for (std::int64_t first = part.tiles.begin; first < part.tiles.end; first += kTiles) {
    const std::int64_t count = std::min(kTiles, part.tiles.end - first);
    code_->transform_inputs(in_, input, first, count, scratch);
    code_->transform_gradients(out_, output_gradient + part.channels.begin, part.channels.size(), first,
                               count, gradients);
    code_->add_tiles(scratch, in_.channels, gradients, part.channels.size(), count, sums, products());
  }
}

void WinogradConvolution::add_threads(std::byte* workspace, float* weight_gradient, GradientMode mode) const {
  const float* const sums = all_points(workspace);
  const int parts = division_ == Division::kTiles ? threads_ : 1;
  const std::int64_t in = in_.channels;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (std::int64_t output = 0; output < out_.channels; ++output) {
    code_->gather_kernel(sums + output * in, parts, products(), in, mode,
                         weight_gradient + output * kKernel * kKernel * in);
  }
}

void WinogradConvolution::backward_weights(Stream& stream, const float* input, const float* output_gradient,
                                           float* weight_gradient, GradientMode mode,
                                           std::byte* workspace) const {
  stream.submit([=, this] {
#pragma omp parallel for num_threads(threads_) schedule(static, 1)
    for (int thread = 0; thread < threads_; ++thread)
      sum(part(workspace, thread), input, output_gradient, scratch(workspace, thread));
    add_threads(workspace, weight_gradient, mode);
  });
}

}  // namespace pipeoptim::host
