// The seam behind the provider: what each backend makes of checked arguments. Private to layers.
#pragma once

#include <memory>

#include "layers/provider.h"

namespace pipeoptim::detail {

// Leading extents are filled in, no extent is 0.
void host_gemm(Stream& stream, const Gemm& product, const GemmBatch& batch);
void host_gemm_here(const Gemm& product);
void cuda_gemm(Stream& stream, const Gemm& product, const GemmBatch& batch);

std::unique_ptr<LinearPlan> make_host_linear(int threads, const LinearSpec& spec);
std::unique_ptr<LinearPlan> make_cuda_linear(Device device, const LinearSpec& spec);

std::unique_ptr<ConvolutionPlan> make_host_convolution(int threads, const ConvolutionSpec& spec);
std::unique_ptr<ConvolutionPlan> make_cuda_convolution(Device device, const ConvolutionSpec& spec);

}  // namespace pipeoptim::detail
