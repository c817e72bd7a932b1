// The product of matrices that the optimizer's tests bring, on both backends.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/runtime/launch.h"
#include "tests/optim/plain_product.h"

namespace pipeoptim::test {

struct PlainProduct {
  MatrixProduct product;

  PO_HD void operator()(std::int64_t i) const {
    using Flip = MatrixProduct::Flip;
    const MatrixProduct& p = product;
    const std::int64_t row = i / p.columns, column = i % p.columns;
    const std::int64_t a_start = p.flip == Flip::kA ? row : row * p.inner;
    const std::int64_t a_step = p.flip == Flip::kA ? p.rows : 1;
    const std::int64_t b_start = p.flip == Flip::kB ? column * p.inner : column;
    const std::int64_t b_step = p.flip == Flip::kB ? 1 : p.columns;
    float sum = 0;
    for (std::int64_t k = 0; k < p.inner; ++k) sum += p.a[a_start + k * a_step] * p.b[b_start + k * b_step];
    p.c[i] = p.alpha * sum + (p.beta == 0 ? 0.0f : p.beta * p.c[i]);
  }
};

void multiply_plainly(Stream& stream, const MatrixProduct& product) {
  for_each(stream, product.rows * product.columns, PlainProduct{product});
}

TEST(PlainProduct, MultipliesEachWay) {
  Stream stream(Device::host());
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};          // 2 x 3
  const std::vector<float> b = {1, -1, 2, 0.5f, 0, 3};      // 3 x 2
  const std::vector<float> a_flipped = {1, 4, 2, 5, 3, 6};  // 3 x 2
  const std::vector<float> b_flipped = {1, 2, 0, -1, 0.5f, 3};
  using Flip = MatrixProduct::Flip;
  for (const Flip flip : {Flip::kNeither, Flip::kA, Flip::kB}) {
    std::vector<float> c = {0, 1, 13, 58.5f};
    multiply_plainly(stream, {.flip = flip,
                              .rows = 2,
                              .columns = 2,
                              .inner = 3,
                              .a = flip == Flip::kA ? a_flipped.data() : a.data(),
                              .b = flip == Flip::kB ? b_flipped.data() : b.data(),
                              .c = c.data(),
                              .alpha = 2,
                              .beta = -1});
    stream.synchronize();
    // a b = {5, 9, 14, 16.5}
    EXPECT_EQ(c, (std::vector<float>{10, 17, 15, -25.5f}));
  }
}

}  // namespace pipeoptim::test
