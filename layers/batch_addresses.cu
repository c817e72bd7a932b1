#include "kernels/runtime/launch.h"
#include "layers/batch_addresses.h"

namespace pipeoptim {
namespace {

struct FillAddresses {
  const float *a, *b, *c;
  GemmBatch batch;

  PO_HD void operator()(std::int64_t i) const {
    const std::int64_t inner = i % batch.count, outer = i / batch.count, all = batch.count * batch.outer;
    batch.addresses[i] = a + inner * batch.step_a + outer * batch.outer_step_a;
    batch.addresses[all + i] = b + inner * batch.step_b + outer * batch.outer_step_b;
    batch.addresses[2 * all + i] = c + inner * batch.step_c + outer * batch.outer_step_c;
  }
};

}  // namespace

void fill_addresses(Stream& stream, const Gemm& product, const GemmBatch& batch) {
  for_each(stream, batch.count * batch.outer, FillAddresses{product.a, product.b, product.c, batch});
}

}  // namespace pipeoptim
