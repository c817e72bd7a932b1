// The optimizer on CUDA gives the host's bits: weights, predictions and state, with a skipped step in
// between. Muon's norms are sums in double in another order; rounded to fp32 they are the same here.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "optim/optimizer.h"
#include "tests/optim/plain_product.h"

namespace pipeoptim::test {
namespace {

constexpr std::int64_t kElements = 20003;  // three chunks, the last with a ragged end

OptimizerArena arena() {
  return {.elements = kElements,
          .groups = {{0, 9001, true}, {9001, kElements, false}},
          .names = {{"first", 0, 9001}, {"second", 9001, kElements, 2}}};  // a matrix
}

class OptimizerRun {
 public:
  OptimizerRun(Device device, const OptimizerConfig& config)
      : device_(device), optimizer_(make_optimizer(device, config, arena(), multiply_plainly)) {
    std::vector<float> weights(kElements);
    for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = std::sin(static_cast<float>(i));
    copy_from_host(weights_.data(), weights.data(), weights.size() * sizeof(float), device);
  }

  void steps() {
    constexpr int kSteps = 6;
    const std::vector<float> rates = {0.01F, 0.02F, 0.005F};
    for (int step = 0; step < kSteps; ++step) {
      std::vector<float> gradient(kElements);
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        gradient[i] = std::cos(static_cast<float>(i) * 0.3F + static_cast<float>(step));
      }
      if (step == 2) gradient[12345] = INFINITY;
      copy_from_host(gradients_.data(), gradient.data(), gradient.size() * sizeof(float), device_);
      if (step % 2 == 0) {
        optimizer_->update_predict(stream_, weights_.data(), gradients_.data(), 0.01F, predicted_.data(),
                                   rates);
      } else {
        optimizer_->update(stream_, weights_.data(), gradients_.data(), 0.02F);
        keep(weights_.data());
        optimizer_->predict(stream_, weights_.data(), predicted_.data(), rates);
      }
      keep(weights_.data());
      keep(predicted_.data());
    }
    for (const auto& [name, slots] : optimizer_->state()) keep(slots);
    Buffer<OptimizerStatus> status(device_, 1, MemoryKind::kPinned);
    optimizer_->copy_status(stream_, status.data());
    stream_.synchronize();
    status_ = *status.data();
  }

  const std::vector<std::vector<float>>& kept() const { return kept_; }
  const OptimizerStatus& status() const { return status_; }

 private:
  void keep(const float* values) {
    stream_.synchronize();
    kept_.emplace_back(kElements);
    copy_to_host(kept_.back().data(), values, kElements * sizeof(float), device_);
  }

  Device device_;
  Stream stream_{device_};
  std::unique_ptr<Optimizer> optimizer_;
  Buffer<float> weights_{device_, kElements};
  Buffer<float> gradients_{device_, kElements};
  Buffer<float> predicted_{device_, kElements};
  std::vector<std::vector<float>> kept_;
  OptimizerStatus status_;
};

class CudaOptimizer : public testing::TestWithParam<std::tuple<std::string, Predictor>> {};

TEST_P(CudaOptimizer, GivesTheBitsOfTheHost) {
  if (device_count(Backend::kCuda) == 0) GTEST_SKIP() << "no CUDA device";
  const auto& [rule, predictor] = GetParam();
  const OptimizerConfig config{
      .rule = rule, .weight_decay = 0.01, .delay = 2, .predictor = predictor, .step_decay = 0.75};
  OptimizerRun host(Device::host(), config);
  OptimizerRun cuda(Device::cuda(0), config);
  host.steps();
  cuda.steps();
  ASSERT_EQ(host.kept().size(), cuda.kept().size());
  for (std::size_t array = 0; array < host.kept().size(); ++array) {
    EXPECT_EQ(std::memcmp(host.kept()[array].data(), cuda.kept()[array].data(), kElements * sizeof(float)), 0)
        << "array " << array;
  }
  EXPECT_EQ(cuda.status().steps, 5);
  EXPECT_EQ(cuda.status().skipped, 1);
  EXPECT_EQ(cuda.status().last_bad_range, 1);
  EXPECT_EQ(host.status().last_bad_range, 1);
  // The order of the sum differs.
  EXPECT_NEAR(cuda.status().gradient_norm, host.status().gradient_norm, 1e-5 * host.status().gradient_norm);
}

std::string case_name(const testing::TestParamInfo<CudaOptimizer::ParamType>& info) {
  constexpr const char* kPredictors[] = {"linear", "schedule_aware", "geometric", "difference"};
  const std::string& rule = std::get<0>(info.param);
  return (rule == "sgdm-sc" ? "sgdm_sc" : rule) + "_" +
         kPredictors[static_cast<int>(std::get<1>(info.param))];
}

std::vector<std::string> rules() {
  std::vector<std::string> names = optimizer_names();
  names.emplace_back("sgdm-sc");
  return names;
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaOptimizer,
                         testing::Combine(testing::ValuesIn(rules()),
                                          testing::Values(Predictor::kLinear, Predictor::kScheduleAware,
                                                          Predictor::kGeometric, Predictor::kDifference)),
                         case_name);

}  // namespace
}  // namespace pipeoptim::test
