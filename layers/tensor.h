// Shapes and views of dense tensors. Activations are batch first, channels last: {N, F} or {N, H, W, C}.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "kernels/runtime/bf16.h"

namespace pipeoptim {

// How the values of a tensor are stored. Whatever is computed from them is computed in fp32, factors of
// products apart.
enum class ElementType { kFp32, kBf16 };

constexpr std::size_t bytes_of(ElementType type) {
  return type == ElementType::kBf16 ? sizeof(Bf16) : sizeof(float);
}

// Up to five extents, row-major (the last one is contiguous).
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents) {
    if (extents.size() > kMaxRank) throw std::invalid_argument("a shape has at most 5 extents");
    for (const auto extent : extents) extents_[rank_++] = extent;
  }

  int rank() const { return rank_; }
  std::int64_t operator[](int axis) const { return extents_[axis]; }
  std::int64_t& operator[](int axis) { return extents_[axis]; }
  std::int64_t first() const { return rank_ == 0 ? 1 : extents_[0]; }
  std::int64_t last() const { return rank_ == 0 ? 1 : extents_[rank_ - 1]; }
  std::int64_t elements() const {
    std::int64_t product = 1;
    for (int axis = 0; axis < rank_; ++axis) product *= extents_[axis];
    return product;
  }
  // "128x32x32x3"
  std::string to_string() const {
    std::string text;
    for (int axis = 0; axis < rank_; ++axis) text += (axis ? "x" : "") + std::to_string(extents_[axis]);
    return text;
  }
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

inline std::size_t tensor_bytes(const Shape& shape, ElementType type) {
  return static_cast<std::size_t>(shape.elements()) * bytes_of(type);
}

// Values of either type, fp32 ones just by their pointer. One of the two is null, both where there are none.
struct Factor {
  const float* values = nullptr;
  const Bf16* rounded = nullptr;

  Factor() = default;
  Factor(const float* fp32, const Bf16* bf16 = nullptr) : values(fp32), rounded(bf16) {}  // NOLINT: as above
};
// The same, written.
struct Destination {
  float* values = nullptr;
  Bf16* rounded = nullptr;

  Destination() = default;
  Destination(float* fp32, Bf16* bf16 = nullptr) : values(fp32), rounded(bf16) {}  // NOLINT: as above
  void* memory() const { return rounded != nullptr ? static_cast<void*>(rounded) : values; }
};

// A view of values in a device's memory; owns nothing. Those of type kBf16 lie at `rounded`, `data` is null
// then.
struct Tensor {
  float* data = nullptr;
  Shape shape;
  Bf16* rounded = nullptr;

  // Null memory gives a tensor that is not there.
  static Tensor at(void* memory, ElementType type, const Shape& shape) {
    const bool rounded = type == ElementType::kBf16;
    return {rounded ? nullptr : static_cast<float*>(memory), shape,
            rounded ? static_cast<Bf16*>(memory) : nullptr};
  }
  bool there() const { return data != nullptr || rounded != nullptr; }
  void* memory() const { return destination().memory(); }
  std::size_t bytes() const {
    return tensor_bytes(shape, rounded != nullptr ? ElementType::kBf16 : ElementType::kFp32);
  }
  Destination destination() const { return {data, rounded}; }
  std::int64_t elements() const { return shape.elements(); }
};

// The same, read-only.
struct ConstTensor {
  const float* data = nullptr;
  Shape shape;
  const Bf16* rounded = nullptr;

  ConstTensor() = default;
  ConstTensor(const float* values, Shape extents) : data(values), shape(extents) {}
  ConstTensor(const Tensor& tensor)  // NOLINT: a view widens
      : data(tensor.data), shape(tensor.shape), rounded(tensor.rounded) {}
  Factor factor() const { return {data, rounded}; }
  const void* memory() const { return rounded != nullptr ? static_cast<const void*>(rounded) : data; }
  std::int64_t elements() const { return shape.elements(); }
};

}  // namespace pipeoptim
