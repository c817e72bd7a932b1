// Kernels for values of either type: a body is a template of it, chosen by what there is.
#pragma once

#include <type_traits>

#include "layers/tensor.h"

namespace pipeoptim {

// The values, which are of the type.
template <typename T>
const T* values_of(const Factor& from) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return from.rounded;
  } else {
    return from.values;
  }
}
template <typename T>
T* values_of(const Destination& to) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return to.rounded;
  } else {
    return to.values;
  }
}
template <typename T>
const T* values_of(const ConstTensor& tensor) {
  return values_of<T>(tensor.factor());
}
template <typename T>
T* values_of(const Tensor& tensor) {
  return values_of<T>(tensor.destination());
}

// Calls body.template operator()<T>() with the type of the values: of a Factor, a Destination or a tensor.
template <typename Values, typename Body>
void with_type_of(const Values& values, const Body& body) {
  if (values.rounded != nullptr) {
    body.template operator()<Bf16>();
  } else {
    body.template operator()<float>();
  }
}

}  // namespace pipeoptim
