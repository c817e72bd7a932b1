// Shapes and views of dense tensors. Activations are batch first, channels last: {N, F} or {N, H, W, C}.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace pipeoptim {

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

// A view of fp32 values in a device's memory; owns nothing.
struct Tensor {
  float* data = nullptr;
  Shape shape;

  std::int64_t elements() const { return shape.elements(); }
};

// The same, read-only.
struct ConstTensor {
  const float* data = nullptr;
  Shape shape;

  ConstTensor() = default;
  ConstTensor(const float* values, Shape extents) : data(values), shape(extents) {}
  ConstTensor(const Tensor& tensor) : data(tensor.data), shape(tensor.shape) {}  // NOLINT: a view widens
  std::int64_t elements() const { return shape.elements(); }
};

}  // namespace pipeoptim
