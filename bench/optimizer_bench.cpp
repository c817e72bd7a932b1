// How near to the speed of memory are the optimizers' passes, and what does the fused one save?
//
// One row a rule and size: update, prediction, both apart and both fused, in per cent of the ceiling: the
// time of loops over the same arrays (stream_loop.h) against the time of the pass. An update reads the
// gradient twice, first to check that all its values are finite: its ceiling is a loop that reads the
// gradient, and one over all arrays. once%: of the fused pass, with the second loop alone as its ceiling, as
// if the check were free.
//
// Rows with "bf16" have a predicted copy of that type, of 2 bytes an element.
//
// Time (mean), fused_s (median, seconds) and GB/s: of the fused pass. speedup: both passes apart against
// fused.
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>

#include "bench/stream_loop.h"
#include "bench/support.h"
#include "kernels/runtime/error.h"
#include "optim/optimizer.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

// What the passes do with the arrays of a rule's state, in this order: an update reads and writes the first
// ones, it only writes the others; a prediction reads the last ones. See optim/rule.h.
struct RuleState {
  const char* name;
  int kept, written, predicting;
  int slots() const { return kept + written; }
};
constexpr RuleState kRules[] = {
    {"sgd", 0, 1, 1},     {"sgdm", 1, 0, 1},    {"nesterov", 1, 1, 1}, {"adam", 2, 0, 2}, {"adamw", 2, 0, 2},
    {"rmsprop", 1, 1, 1}, {"adagrad", 1, 1, 1}, {"nadam", 2, 1, 1},    {"adan", 4, 0, 3}, {"lion", 1, 1, 1}};

// An optimizer with its arrays, and its passes as work on a stream.
class Passes {
 public:
  Passes(Stream& stream, const RuleState& rule, const OptimizerArena& arena)
      : stream_(stream),
        rule_(rule),
        weights_(random_buffer(arena.elements)),
        gradients_(random_buffer(arena.elements, 0.1F)),
        predicted_(stream.device(), static_cast<std::size_t>(arena.elements - arena.rounded_elements)),
        rounded_(stream.device(), static_cast<std::size_t>(arena.rounded_elements)),
        optimizer_(make_optimizer(stream.device(), {.rule = rule.name, .weight_decay = 0.01}, arena)) {
    update_predict();  // the first step is unlike the others: it has no state yet
    stream.synchronize();
  }

  void update() { optimizer_->update(stream_, weights_.data(), gradients_.data(), kRate); }
  void predict() { optimizer_->predict(stream_, weights_.data(), predicted(), kRates); }
  void update_predict() {
    optimizer_->update_predict(stream_, weights_.data(), gradients_.data(), kRate, predicted(), kRates);
  }

  Traffic check_traffic() const { return {.read = {gradients_.data()}}; }
  Traffic update_traffic() const {
    Traffic traffic{.read = {gradients_.data()}, .kept = {weights_.data()}};
    for (int slot = 0; slot < rule_.slots(); ++slot) {
      (slot < rule_.kept ? traffic.kept : traffic.written).push_back(state(slot));
    }
    return traffic;
  }
  Traffic predict_traffic() const {
    Traffic traffic{.read = {weights_.data()}};
    add_predicted(traffic);
    for (int slot = rule_.slots() - rule_.predicting; slot < rule_.slots(); ++slot) {
      traffic.read.push_back(state(slot));
    }
    return traffic;
  }
  Traffic fused_traffic() const {
    Traffic traffic = update_traffic();
    add_predicted(traffic);
    return traffic;
  }

 private:
  static constexpr float kRate = 1e-6F;  // the weights stay what they are, however many steps
  static constexpr float kRates[] = {kRate, kRate, kRate};

  PredictedWeights predicted() const { return {predicted_.data(), rounded_.data()}; }
  void add_predicted(Traffic& traffic) const {
    if (predicted_.size() > 0) traffic.written.push_back(predicted_.data());
    if (rounded_.size() > 0) traffic.rounded.push_back(rounded_.data());
  }
  float* state(int slot) const { return optimizer_->state()[static_cast<std::size_t>(slot)].second; }

  Stream& stream_;
  RuleState rule_;
  Buffer<float> weights_, gradients_, predicted_;
  Buffer<Bf16> rounded_;
  std::unique_ptr<Optimizer> optimizer_;
};

// One way of doing it against its ceiling.
struct Way {
  std::string name;
  std::function<void()> enqueue;
  Ceiling ceiling;
  Samples times = {};

  double measure(Stream& stream, std::int64_t n) {
    const double time = pass_seconds(stream, n, enqueue);
    times.add(time);
    ceiling.measure();
    return time;
  }
};

void measure(benchmark::State& state, const RuleState& rule, const OptimizerArena& arena) try {
  Stream stream(device(), {.threads = threads()});
  Passes passes(stream, rule, arena);
  const std::int64_t n = arena.elements;
  Way ways[] = {
      {"update", [&] { passes.update(); }, {stream, {passes.check_traffic(), passes.update_traffic()}, n}},
      {"predict", [&] { passes.predict(); }, {stream, {passes.predict_traffic()}, n}},
      {"apart",
       [&] {
         passes.update();
         passes.predict();
       },
       {stream, {passes.check_traffic(), passes.update_traffic(), passes.predict_traffic()}, n}},
      {"fused",
       [&] { passes.update_predict(); },
       {stream, {passes.check_traffic(), passes.fused_traffic()}, n}}};
  const Way& apart = ways[2];
  const Way& fused = ways[3];
  Ceiling once(stream, {passes.fused_traffic()}, n);
  for ([[maybe_unused]] auto _ : state) {
    double time = 0;
    for (Way& way : ways) time = way.measure(stream, n);
    once.measure();
    state.SetIterationTime(time);
  }
  for (const Way& way : ways) {
    state.counters[way.name + "%"] = 100 * way.ceiling.median() / way.times.median();
  }
  const double bytes = fused.ceiling.bytes_per_element() * static_cast<double>(n);
  state.counters["once%"] = 100 * once.median() / fused.times.median();
  state.counters["fused_s"] = fused.times.median();
  state.counters["GB/s"] = bytes / fused.times.median() * 1e-9;
  state.counters["speedup"] = apart.times.median() / fused.times.median();
  state.SetLabel("bytes read and written: " + std::to_string(apart.ceiling.bytes_per_element()) + ", fused " +
                 std::to_string(fused.ceiling.bytes_per_element()));
} catch (const DeviceError& error) {  // of memory
  state.SkipWithError(error.what());
}

void add(const RuleState& rule, const std::string& size, const OptimizerArena& arena) {
  const std::int64_t iterations = std::clamp<std::int64_t>((1 << 28) / arena.elements, 7, 100);
  benchmark::RegisterBenchmark((rule.name + ("/" + size)).c_str(),
                               [rule, arena](benchmark::State& state) { measure(state, rule, arena); })
      ->UseManualTime()
      ->Iterations(iterations)
      ->Unit(benchmark::kMicrosecond);
}

// As a model's stage has them: weights first, then what does not decay.
OptimizerArena tiny_tensors(std::int64_t count, std::int64_t elements) {
  OptimizerArena arena{.elements = count * elements};
  arena.groups = {{0, arena.elements / 2, true}, {arena.elements / 2, arena.elements, false}};
  for (std::int64_t i = 0; i < count; ++i) {
    arena.names.push_back({std::to_string(i), i * elements, (i + 1) * elements});
  }
  return arena;
}

// The host would rather swap than refuse.
bool memory_allows(const RuleState& rule, std::int64_t elements) {
  if (device().backend == Backend::kCuda) return true;
  const double needed = 4.0 * (3 + rule.slots()) * static_cast<double>(elements);
  return 1.5 * needed <
         static_cast<double>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// As all of a model's matrices have it where products are made in bf16.
OptimizerArena rounded(std::int64_t elements) { return {.elements = elements, .rounded_elements = elements}; }

void add_all() {
  constexpr std::int64_t kMillion = 1 << 20;
  for (const RuleState& rule : kRules) {
    add(rule, "1K", {.elements = 1024});
    add(rule, "32K", {.elements = 32 * 1024});
    add(rule, "1M", {.elements = kMillion});
    add(rule, "16M", {.elements = 16 * kMillion});
  }
  const RuleState &sgdm = kRules[1], &adamw = kRules[4], &adan = kRules[8];
  for (const RuleState* rule : {&sgdm, &adamw, &adan}) add(*rule, "bf16/16M", rounded(16 * kMillion));
  for (const std::int64_t millions : {64, 1024}) {
    if (memory_allows(adamw, millions * kMillion)) {
      add(adamw, std::to_string(millions) + "M", {.elements = millions * kMillion});
    }
  }
  if (memory_allows(adamw, 64 * kMillion)) add(adamw, "bf16/64M", rounded(64 * kMillion));
  add(adamw, "10000x112", tiny_tensors(10000, 112));
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv, add_all); }
