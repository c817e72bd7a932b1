#include "layers/last_step.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/support/planned_layer.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::random_values;

TEST(LastStep, TakesTheLastPosition) {
  const Shape shape{3, 4, 20};
  auto layer = planned<LastStep>(shape, {});
  EXPECT_EQ(layer.plan().output, (Shape{3, 20}));
  const auto x = random_values(shape.elements(), 1), dy = random_values(60, 2);
  const auto y = layer.forward(x);
  const auto dx = layer.backward(dy);
  for (std::size_t n = 0; n < 3; ++n) {
    for (std::size_t c = 0; c < 20; ++c) EXPECT_EQ(y[n * 20 + c], x[(n * 4 + 3) * 20 + c]);
    for (std::size_t t = 0; t < 4; ++t) {
      for (std::size_t c = 0; c < 20; ++c) {
        EXPECT_EQ(dx[(n * 4 + t) * 20 + c], t == 3 ? dy[n * 20 + c] : 0);
      }
    }
  }
  EXPECT_THROW(LastStep().plan(Device::host(), 1, {3, 4}), std::invalid_argument);
}

}  // namespace
}  // namespace pipeoptim
