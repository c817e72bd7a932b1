#include "pipeline/methods.h"

#include <cmath>
#include <stdexcept>

#include "kernels/runtime/names.h"

namespace pipeoptim {

const std::vector<Method>& methods() {
  constexpr int kMany = 64;
  static const std::vector<Method> table = {
      {"sequential", ComputeOrder::kSequential, WeightPolicy::kLive, "one mini-batch at a time"},
      {"gpipe", ComputeOrder::kGpipe, WeightPolicy::kLive, "all forwards, all backwards, one update"},
      {"1f1b", ComputeOrder::kOneForwardOneBackward, WeightPolicy::kLive, "as gpipe, with fewer activations"},
      {"interleaved",
       ComputeOrder::kOneForwardOneBackward,
       WeightPolicy::kLive,
       "1f1b with several stages a worker",
       {1, 2, kMany}},
      {"zb-h1", ComputeOrder::kZeroBubbleH1, WeightPolicy::kLive, "1f1b with weight gradients in the gaps"},
      {"zb-h2", ComputeOrder::kZeroBubbleH2, WeightPolicy::kLive, "no idle time at twice the activations"},
      {"zb-v",
       ComputeOrder::kZeroBubbleV,
       WeightPolicy::kLive,
       "no idle time at the activations of 1f1b",
       {2, 2, 2}},
      {"zb-auto", ComputeOrder::kZeroBubbleAuto, WeightPolicy::kLive,
       "weight gradients placed by costs and a limit of activations"},
      {"naive",
       ComputeOrder::kAsynchronous,
       WeightPolicy::kLive,
       "asynchronous without a remedy",
       {1, 1, kMany}},
      {"pipedream",
       ComputeOrder::kAsynchronous,
       WeightPolicy::kSameVersion,
       "weight stashing",
       {1, 1, kMany}},
      {"pipedream-vertical", ComputeOrder::kAsynchronous, WeightPolicy::kVerticalSync,
       "weight stashing, one version for all stages"},
      {"pipedream-2bw", ComputeOrder::kAsynchronous, WeightPolicy::kDoubleBuffered,
       "one update late, two versions"},
      {"spectrain", ComputeOrder::kAsynchronous, WeightPolicy::kSpecTrain, "forward and backward predicted"},
      {"xpipe", ComputeOrder::kAsynchronous, WeightPolicy::kXPipe,
       "as spectrain, one prediction for all micro-batches"},
      {"pipeoptim",
       ComputeOrder::kAsynchronous,
       WeightPolicy::kPipeOptim,
       "the forward predicted",
       {1, 1, kMany}},
      {"lwp", ComputeOrder::kAsynchronous, WeightPolicy::kPaperHorizon, "linear weight prediction"},
      {"spike-compensation",
       ComputeOrder::kAsynchronous,
       WeightPolicy::kLive,
       "momentum that makes up for the delay",
       {},
       "sgdm-sc"},
      {"lwp-sc",
       ComputeOrder::kAsynchronous,
       WeightPolicy::kPaperHorizon,
       "lwp and spike compensation",
       {},
       "sgdm-sc"},
      {"pipemare", ComputeOrder::kAsynchronous, WeightPolicy::kPipeMare,
       "the backward led back, lower rates at first"},
      {"async-nag",
       ComputeOrder::kAsynchronous,
       WeightPolicy::kSameVersion,
       "weight stashing and NAdam",
       {},
       "nadam",
       0.99},
      {"delayed", ComputeOrder::kDelayed, WeightPolicy::kPipeOptim,
       "one stage, --delay updates of staleness"},
  };
  return table;
}

const Method& find_method(const std::string& name) {
  for (const Method& method : methods()) {
    if (name == method.name) return method;
  }
  throw std::invalid_argument(unknown_name("method", name, method_names()));
}

const std::vector<std::string>& method_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const Method& method : methods()) list.emplace_back(method.name);
    return list;
  }();
  return names;
}

OptimizerConfig stage_optimizer(const Method& method, const OptimizerConfig& config,
                                const StageSetting& stage) {
  OptimizerConfig own = config;
  if (*method.rule != '\0') own.rule = method.rule;
  if (own.rule == "sgdm-sc") own.delay = stage.gap;
  if (method.beta1 > 0 && !own.beta1) own.beta1 = method.beta1;
  if (method.weights == WeightPolicy::kPipeOptim && stage.horizon == HorizonPolicy::kReleasedCode) {
    own.momentum_direction = MomentumDirection::kReleasedCode;
  }
  if (method.weights == WeightPolicy::kPipeMare) {
    own.predictor = Predictor::kDifference;
    own.step_decay = stage.gap == 0 ? 0 : std::pow(stage.pipemare_decay, 1.0 / stage.gap);
  }
  return own;
}

float rate_factor(const Method& method, int gap, std::int64_t step, std::int64_t anneal_steps) {
  if (method.weights != WeightPolicy::kPipeMare || gap <= 1 || step >= anneal_steps) return 1;
  const double p = 1 - static_cast<double>(step) / static_cast<double>(anneal_steps);
  return static_cast<float>(1 / std::pow(gap, p));
}

int chunks_of(const Method& method, int chunks) {
  const ChunkRange& range = method.chunks;
  if (chunks == 0) return range.normal;
  if (chunks >= range.least && chunks <= range.most) return chunks;
  const std::string least = std::to_string(range.least);
  throw std::invalid_argument(
      std::string(method.name) + " runs with " +
      (range.least == range.most ? least : least + " to " + std::to_string(range.most)) +
      " stages on each worker (--chunks), not " + std::to_string(chunks));
}

}  // namespace pipeoptim
