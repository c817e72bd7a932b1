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

}  // namespace pipeoptim::test
