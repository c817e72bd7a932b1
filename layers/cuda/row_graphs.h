// Batch norm and pooling, planned through cuDNN's graph interface.
#pragma once

#include <cudnn.h>

#include <cstdint>

#include "layers/cuda/graph_plan.h"
#include "layers/vendor_rows.h"

namespace pipeoptim::cuda {

// Ids of the tensors of all these graphs.
enum RowId : std::int64_t {
  kX = 1,
  kY,
  kXGradient,
  kYGradient,
  kScale,  // the layer's weight; its gradient, and that of the bias, are sums over the rows
  kBias,
  kScaleGradient,
  kBiasGradient,
  kEpsilon,  // these two in host memory
  kMomentum,
  kRunningMean,
  kRunningVariance,
  kNextMean,
  kNextVariance,
  kMean,
  kReciprocal,  // of the deviation: 1 / sqrt(variance + eps)
  kChosen       // positions of maxima
};

// y = relu(norm(x)), or without the ReLU, and what there is to remember.
GraphPlan plan_norm_forward(cudnnHandle_t handle, const VendorNormSpec& spec);
// From the gradient behind the ReLU.
GraphPlan plan_norm_backward(cudnnHandle_t handle, const VendorNormSpec& spec);
GraphPlan plan_pool_forward(cudnnHandle_t handle, const VendorPoolSpec& spec);
GraphPlan plan_pool_backward(cudnnHandle_t handle, const VendorPoolSpec& spec);

}  // namespace pipeoptim::cuda
