// An optimizer with its arenas in host memory, and gradients that depend on (step, element) alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "optim/optimizer.h"
#include "tests/optim/plain_product.h"

namespace pipeoptim::test {

inline std::vector<float> normal_values(std::int64_t n, std::uint32_t seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(generator);
  return values;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

class OptimizerRun {
 public:
  explicit OptimizerRun(const OptimizerConfig& config, OptimizerArena arena, int threads = 1)
      : elements_(arena.elements),
        stream_(Device::host(), {.threads = threads}),
        weights_(Device::host(), size()),
        gradients_(Device::host(), size()),
        predicted_(Device::host(), size()),
        optimizer_(make_optimizer(Device::host(), config, std::move(arena), multiply_plainly)) {
    set_weights(normal_values(elements_, 7));
  }
  ~OptimizerRun() { stream_.synchronize(); }
  OptimizerRun(const OptimizerRun&) = delete;
  OptimizerRun& operator=(const OptimizerRun&) = delete;

  void set_weights(const std::vector<float>& values) { copy_in(weights_, values); }
  void set_gradients(const std::vector<float>& values) { copy_in(gradients_, values); }

  void update(float lr) {
    optimizer_->update(stream_, weights_.data(), gradients_.data(), lr);
    stream_.synchronize();
  }
  void predict(const std::vector<float>& rates) { look(rates); }
  void look(Lookahead ahead) {
    optimizer_->predict(stream_, weights_.data(), predicted_.data(), ahead);
    stream_.synchronize();
  }
  void update_predict(float lr, const std::vector<float>& rates) { update_look(lr, rates); }
  void update_look(float lr, Lookahead ahead) {
    optimizer_->update_predict(stream_, weights_.data(), gradients_.data(), lr, predicted_.data(), ahead);
    stream_.synchronize();
  }

  std::vector<float> weights() const { return copy_out(weights_.data()); }
  std::vector<float> predicted() const { return copy_out(predicted_.data()); }
  std::vector<float> slot(int index) {
    return copy_out(optimizer_->state()[static_cast<std::size_t>(index)].second);
  }
  std::vector<float> all_slots() {
    std::vector<float> all;
    for (int i = 0; i < optimizer_->slots(); ++i) {
      const std::vector<float> one = slot(i);
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  OptimizerStatus status() {
    OptimizerStatus status;
    optimizer_->copy_status(stream_, &status);
    stream_.synchronize();
    return status;
  }
  Optimizer& optimizer() { return *optimizer_; }
  Stream& stream() { return stream_; }

 private:
  std::size_t size() const { return static_cast<std::size_t>(elements_); }
  void copy_in(Buffer<float>& to, const std::vector<float>& values) {
    if (values.empty()) return;
    copy_from_host(to.data(), values.data(), values.size() * sizeof(float), Device::host());
  }
  std::vector<float> copy_out(const float* from) const {
    std::vector<float> values(size());
    if (values.empty()) return values;
    copy_to_host(values.data(), from, values.size() * sizeof(float), Device::host());
    return values;
  }

  std::int64_t elements_;
  Stream stream_;
  Buffer<float> weights_, gradients_, predicted_;
  std::unique_ptr<Optimizer> optimizer_;
};

// Two chunks and an odd rest; the middle group does not decay and begins at an odd element. The last tensor
// is a matrix.
inline constexpr std::int64_t kMatrixBegin = 9050, kMatrixRows = 113, kMatrixColumns = 97;
inline OptimizerArena uneven_arena() {
  return {.elements = 20011,
          .groups = {{0, 9001, true}, {9001, 9050, false}, {9050, 20011, true}},
          .names = {{"first.weight", 0, 9001},
                    {"first.bias", 9001, 9050},
                    {"second.weight", kMatrixBegin, 20011, kMatrixRows}}};
}

inline constexpr std::int64_t kFew = 1000;
inline OptimizerArena plain_arena() { return {.elements = kFew, .groups = {}, .names = {}}; }

// With what only a method sets.
inline std::vector<std::string> all_rules() {
  std::vector<std::string> names = optimizer_names();
  names.emplace_back("sgdm-sc");
  return names;
}

// For test names, which have no dashes.
inline std::string rule_test_name(std::string rule) {
  std::replace(rule.begin(), rule.end(), '-', '_');
  return rule;
}

// A configuration of every rule with nothing at its default.
inline OptimizerConfig lively_config(const std::string& rule) {
  OptimizerConfig config{.rule = rule,
                         .momentum = 0.85,
                         .beta1 = 0.8,
                         .beta2 = 0.95,
                         .beta3 = 0.97,
                         .alpha = 0.9,
                         .momentum_decay = 0.05,
                         .eps = 1e-6,
                         .weight_decay = 0.02,
                         .delay = 3,
                         .step_decay = 0.75};
  if (rule == "sgdm") config.dampening = 0.25;
  return config;
}

}  // namespace pipeoptim::test
