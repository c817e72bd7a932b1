// One direction of a convolution, planned through cuDNN's graph interface.
#pragma once

#include <cudnn.h>

#include <cstddef>
#include <cstdint>

#include "layers/cuda/graph_plan.h"
#include "layers/provider.h"

namespace pipeoptim::cuda {

enum class Direction { kForward, kBackwardData, kBackwardWeights };
enum class BiasAdd { kNone, kFused };
enum class Result { kFp32, kBf16 };

// Ids of a graph's tensors; each stands for the values or for their gradient.
inline constexpr std::int64_t kInputId = 1;
inline constexpr std::int64_t kWeightsId = 2;
inline constexpr std::int64_t kOutputId = 3;
inline constexpr std::int64_t kBiasId = 4;

struct GraphRequest {
  Direction direction = Direction::kForward;
  BiasAdd bias = BiasAdd::kNone;
  Result result = Result::kFp32;
  Kernels kernels = Kernels::kDeterministic;
  Engines engines = Engines::kBest;
  std::size_t max_workspace = 0;  // bytes
};

// The first plan in the order of cuDNN's heuristics that does what is asked. The device of the handle is the
// current one.
GraphPlan plan_graph(cudnnHandle_t handle, const ConvolutionSpec& spec, const GraphRequest& request);

}  // namespace pipeoptim::cuda
