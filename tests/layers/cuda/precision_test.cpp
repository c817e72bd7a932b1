// TF32 and bf16 are used where they are asked for, and nowhere else. A factor of 1 + 2^-12 has more bits than
// either keeps.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "layers/provider.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

constexpr std::int64_t kExtent = 64;
constexpr float kFine = 1.0F + 1.0F / 4096;

class CudaPrecision : public BackendTest {
 protected:
  // A matrix of kFine in the diagonal.
  Buffer<float> diagonal() const {
    std::vector<float> values(kExtent * kExtent);
    for (std::int64_t i = 0; i < kExtent; ++i) values[static_cast<std::size_t>(i * kExtent + i)] = kFine;
    return on_device(values);
  }
  Buffer<float> ones() const { return on_device(std::vector<float>(kExtent * kExtent, 1.0F)); }
  // Of a product of both.
  void expect(const Buffer<float>& product, MatrixPrecision precision, const char* what) const {
    for (const float value : on_host(product)) {
      if (precision == MatrixPrecision::kFp32) {
        ASSERT_EQ(value, kFine) << what;
      } else if (rounds()) {
        ASSERT_EQ(value, 1.0F) << what;
      } else {
        ASSERT_NEAR(value, 1.0F, kFine - 1.0F) << what;
      }
    }
  }

  // A library may use fp32 where less is allowed. A simulated device says which it does.
  static bool rounds() {
    const char* const simulated = std::getenv("CUDASIM_TF32");
    return simulated != nullptr && std::string(simulated) == "1";
  }
};

TEST_P(CudaPrecision, IsThatOfTheSpec) {
  const Buffer<float> fine = diagonal(), one = ones();
  Buffer<float> product = ones();
  Stream stream(device());
  for (const MatrixPrecision precision :
       {MatrixPrecision::kFp32, MatrixPrecision::kTf32, MatrixPrecision::kBf16}) {
    const Gemm gemm_spec{.rows = kExtent,
                         .columns = kExtent,
                         .inner = kExtent,
                         .a = fine.data(),
                         .b = one.data(),
                         .c = product.data(),
                         .precision = precision};
    gemm(stream, gemm_spec);
    stream.synchronize();
    expect(product, precision, "gemm");
    gemm_batched(stream, gemm_spec, {.count = 2});
    stream.synchronize();
    expect(product, precision, "batched");
    const auto plan =
        make_linear(device(), 1, {.rows = kExtent, .in = kExtent, .out = kExtent, .precision = precision});
    const Memory workspace(device(), plan->workspace_bytes());
    plan->forward(stream, {.input = one.data(), .weights = {fine.data()}, .output = product.data()},
                  workspace.data());
    stream.synchronize();
    expect(product, precision, "linear");
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, CudaPrecision, testing::Values(Backend::kCuda), backend_name);

}  // namespace
}  // namespace pipeoptim::test
