// A predicted copy whose first elements are bf16: they are those of an fp32 copy, rounded, bit for bit, and
// nothing else changes. On every backend.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/optim/optimizer_run.h"
#include "tests/support/backends.h"

namespace pipeoptim::test {
namespace {

// What a pass leaves behind, bit for bit.
struct Results {
  std::vector<float> weights, slots, predicted;  // predicted: what is fp32 of it
  std::vector<std::uint16_t> rounded;
};

std::vector<std::uint16_t> rounded_bits(const std::vector<float>& values, std::int64_t count) {
  std::vector<std::uint16_t> bits;
  for (std::int64_t i = 0; i < count; ++i) bits.push_back(to_bf16(values[static_cast<std::size_t>(i)]).bits);
  return bits;
}

class RoundedRun {
 public:
  RoundedRun(Device device, const OptimizerConfig& config, OptimizerArena arena)
      : elements_(arena.elements),
        rounded_elements_(arena.rounded_elements),
        stream_(device, {.threads = 2}),
        weights_(device, size(elements_)),
        gradients_(device, size(elements_)),
        predicted_(device, size(elements_ - rounded_elements_)),
        rounded_(device, size(rounded_elements_)),
        optimizer_(make_optimizer(device, config, std::move(arena), multiply_plainly)) {
    copy_in(weights_, normal_values(elements_, 7));
  }

  void set_gradients(const std::vector<float>& values) { copy_in(gradients_, values); }
  void update(float lr) { optimizer_->update(stream_, weights_.data(), gradients_.data(), lr); }
  void predict(Lookahead ahead) { optimizer_->predict(stream_, weights_.data(), predicted(), ahead); }
  void update_predict(float lr, Lookahead ahead) {
    optimizer_->update_predict(stream_, weights_.data(), gradients_.data(), lr, predicted(), ahead);
  }

  Results results() {
    stream_.synchronize();
    Results results{copy_out(weights_.data(), elements_),
                    {},
                    copy_out(predicted_.data(), elements_ - rounded_elements_),
                    std::vector<std::uint16_t>(size(rounded_elements_))};
    for (const auto& [name, values] : optimizer_->state()) {
      const std::vector<float> slot = copy_out(values, elements_);
      results.slots.insert(results.slots.end(), slot.begin(), slot.end());
    }
    copy_to_host(results.rounded.data(), rounded_.data(), rounded_.size() * sizeof(Bf16), stream_.device());
    return results;
  }

 private:
  static std::size_t size(std::int64_t elements) { return static_cast<std::size_t>(elements); }
  PredictedWeights predicted() const { return {predicted_.data(), rounded_.data()}; }
  void copy_in(const Buffer<float>& to, const std::vector<float>& values) {
    stream_.synchronize();
    copy_from_host(to.data(), values.data(), values.size() * sizeof(float), stream_.device());
  }
  std::vector<float> copy_out(const float* from, std::int64_t elements) const {
    std::vector<float> values(size(elements));
    copy_to_host(values.data(), from, values.size() * sizeof(float), stream_.device());
    return values;
  }

  std::int64_t elements_, rounded_elements_;
  Stream stream_;
  Buffer<float> weights_, gradients_, predicted_;
  Buffer<Bf16> rounded_;
  std::unique_ptr<Optimizer> optimizer_;
};

// Runs an optimizer with and without rounded elements through the same passes.
class RoundedContract : public BackendTest {
 protected:
  void compare(const OptimizerConfig& config, std::int64_t rounded_elements) {
    SCOPED_TRACE(config.rule + ", predictor " + std::to_string(static_cast<int>(config.predictor)) + ", " +
                 std::to_string(rounded_elements) + " rounded");
    OptimizerArena arena = uneven_arena();
    RoundedRun plain(device(), config, arena);
    arena.rounded_elements = rounded_elements;
    RoundedRun rounding(device(), config, arena);
    for (std::uint32_t step = 0; step < 7; ++step) {
      auto gradients = normal_values(arena.elements, step);
      // Skipped are the first two steps, so that none is completed, and a later one.
      if (step < 2 || step == 4) gradients[12345] = INFINITY;
      for (RoundedRun* run : {&plain, &rounding}) {
        run->set_gradients(gradients);
        one_step(*run, step);
      }
      expect_rounded(plain.results(), rounding.results());
      if (HasFatalFailure()) return;
    }
  }

 private:
  static void one_step(RoundedRun& run, std::uint32_t step) {
    static constexpr float kRates[] = {0.01F, 0.02F, 0.005F, 0.03F};
    const auto rates = std::span(kRates).first((step + 3) % 5);  // in step 2: a copy
    if (step % 2 == 0) return run.update_predict(0.01F, rates);
    run.update(0.01F);
    run.predict(rates);
  }

  static void expect_rounded(const Results& plain, const Results& rounding) {
    const auto border = static_cast<std::ptrdiff_t>(rounding.rounded.size());
    ASSERT_TRUE(same_bits(rounding.weights, plain.weights));
    ASSERT_TRUE(same_bits(rounding.slots, plain.slots));
    ASSERT_TRUE(same_bits(rounding.predicted, {plain.predicted.begin() + border, plain.predicted.end()}));
    ASSERT_EQ(rounding.rounded, rounded_bits(plain.predicted, border));
  }
};

INSTANTIATE_TEST_SUITE_P(Backends, RoundedContract, testing::ValuesIn(built_backends()), backend_name);

// The border lies within the group that does not decay.
TEST_P(RoundedContract, HoldsForEveryRuleAndPredictor) {
  for (const std::string& rule : all_rules()) {
    for (const Predictor predictor :
         {Predictor::kLinear, Predictor::kGeometric, Predictor::kDifference, Predictor::kNone}) {
      OptimizerConfig config = lively_config(rule);
      config.predictor = predictor;
      compare(config, 9008);
      if (HasFatalFailure()) return;
    }
  }
}

// Within a chunk, at its end, within a matrix, and around everything.
TEST_P(RoundedContract, HoldsWhereverTheBorderLies) {
  for (const std::string rule : {"adamw", "muon"}) {
    for (const std::int64_t border : {16, 4096, 8192, 9056, 16384, 20000, 20011}) {
      compare(lively_config(rule), border);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(RoundedContract, LeavesTheGradientsNormAtAChunksEnd) {
  OptimizerConfig config = lively_config("adamw");
  config.clip_norm = 100;  // in effect: the norm is about 141
  compare(config, 8192);
}

// The largest bf16 value is 3.3895e38.
TEST_P(RoundedContract, LetsLargeWeightsBecomeInfinite) {
  RoundedRun run(device(), {.rule = "sgd"}, {.elements = 32, .rounded_elements = 32});
  std::vector<float> gradients(32);
  gradients[0] = -3.40e38F;
  gradients[1] = -3.39e38F;
  run.set_gradients(gradients);
  run.update_predict(1, {});
  const Results results = run.results();
  EXPECT_EQ(results.rounded[0], 0x7F80);
  EXPECT_EQ(results.rounded[1], 0x7F7F);
}

std::string refusal(std::int64_t elements, std::int64_t rounded_elements) {
  try {
    make_optimizer(Device::host(), {.rule = "sgd"},
                   {.elements = elements, .rounded_elements = rounded_elements});
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(RoundedElements, AreAMultipleOf16OrAll) {
  for (const std::int64_t rounded : {0, 16, 96, 100}) EXPECT_EQ(refusal(100, rounded), "") << rounded;
  for (const std::int64_t rounded : {-16, 8, 97, 112}) {
    EXPECT_NE(refusal(100, rounded).find("rounded_elements is " + std::to_string(rounded)),
              std::string::npos);
  }
}

TEST(RoundedElements, NeedMemoryOfTheirOwn) {
  Stream stream(Device::host());
  const auto optimizer =
      make_optimizer(Device::host(), {.rule = "sgd"}, {.elements = 64, .rounded_elements = 32});
  Buffer<float> weights(Device::host(), 64), predicted(Device::host(), 32);
  Buffer<Bf16> rounded(Device::host(), 32);
  EXPECT_THROW(optimizer->predict(stream, weights.data(), predicted.data(), {}), std::invalid_argument);
  const PredictedWeights onto_weights(weights.data(), rounded.data());
  EXPECT_THROW(optimizer->predict(stream, weights.data(), onto_weights, {}), std::invalid_argument);
  EXPECT_NO_THROW(optimizer->predict(stream, weights.data(), {predicted.data(), rounded.data()}, {}));
  stream.synchronize();
}

}  // namespace
}  // namespace pipeoptim::test
