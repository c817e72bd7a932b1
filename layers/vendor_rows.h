// The seam to a vendor's batch norm and pooling (RowKernels::kCudnn). Private to layers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "layers/layer.h"

namespace pipeoptim {

struct VendorNormSpec {
  Shape input;  // {N, H, W, C}
  ElementType type = ElementType::kFp32;
  float eps = 0;
  float momentum = 0;
  Activation activation = Activation::kNone;
};

// Arrays of C values but x and y.
struct VendorNormForward {
  ConstTensor x;
  Tensor y;
  const float *weight, *bias;
  const float *running_mean, *running_variance;
  float *next_mean, *next_variance;  // the running statistics after this micro-batch
  float *mean, *rstd;                // of the micro-batch
};
// Of the norm without its activation.
struct VendorNormBackward {
  ConstTensor x;
  ConstTensor output_gradient;
  Tensor input_gradient;
  const float *weight, *mean, *rstd;
  float *weight_gradient, *bias_gradient;
};

// Training's batch norm in the hands of a library. As a ConvolutionPlan it is used by one stream at a time
// and outlives the work that it enqueued.
class VendorNorm {
 public:
  virtual ~VendorNorm() = default;
  virtual std::size_t workspace_bytes() const = 0;
  virtual void forward(Stream& stream, const VendorNormForward& operands, std::byte* workspace) const = 0;
  virtual void backward(Stream& stream, const VendorNormBackward& operands, std::byte* workspace) const = 0;
};

enum class PoolKind { kMaximum, kMean };

// Height and width of each.
struct VendorPoolSpec {
  PoolKind kind = PoolKind::kMaximum;
  Shape input, output;  // {N, H, W, C}
  ElementType type = ElementType::kFp32;
  std::array<std::int64_t, 2> window{}, stride{}, padding{};
};

class VendorPool {
 public:
  virtual ~VendorPool() = default;
  virtual std::size_t stash_bytes() const = 0;  // what forward leaves for backward
  virtual std::size_t workspace_bytes() const = 0;
  virtual void forward(Stream& stream, const void* x, void* y, std::byte* stash,
                       std::byte* workspace) const = 0;
  virtual void backward(Stream& stream, const void* output_gradient, void* input_gradient, std::byte* stash,
                        std::byte* workspace) const = 0;
};

namespace detail {

// Null where cuDNN has no plan for the shape.
std::unique_ptr<VendorNorm> make_cuda_norm(Device device, const VendorNormSpec& spec);
std::unique_ptr<VendorPool> make_cuda_pool(Device device, const VendorPoolSpec& spec);

}  // namespace detail
}  // namespace pipeoptim
