// What comes of a request to cuDNN's graph interface. Only the files that make graphs include the frontend's
// headers (frontend.h), which take long to compile.
#pragma once

#include <cudnn.h>

#include <cstddef>
#include <memory>
#include <string>

namespace pipeoptim::cuda {

enum class Kernels { kDeterministic, kAny };
// cuDNN's ranking for the shape (heuristics, mode A), or its list of engines that can nearly everything, some
// of them slowly.
enum class Engines { kBest, kFallback };

struct GraphPlan {
  std::shared_ptr<const void> owner = nullptr;    // of the descriptor
  cudnnBackendDescriptor_t descriptor = nullptr;  // null where cuDNN has no plan for the request
  std::size_t workspace_bytes = 0;
  std::string refusal = {};  // what cuDNN said then
};

}  // namespace pipeoptim::cuda
