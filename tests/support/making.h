// Layers for tables of cases, made anew for each of them.
#pragma once

#include <functional>
#include <memory>

#include "layers/layer.h"

namespace pipeoptim::test {

template <typename T, typename... Arguments>
std::function<LayerPtr()> making(Arguments... arguments) {
  return [arguments...] { return std::make_unique<T>(arguments...); };
}

// The same with cuDNN's kernels for rows, on CUDA and where it has them.
template <typename T, typename... Arguments>
std::function<LayerPtr()> making_by_cudnn(Arguments... arguments) {
  return [arguments...] {
    LayerPtr layer = std::make_unique<T>(arguments...);
    layer->set_row_kernels(RowKernels::kCudnn);
    return layer;
  };
}

}  // namespace pipeoptim::test
