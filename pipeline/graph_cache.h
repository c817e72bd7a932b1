// The forwards and backwards of one stage as CUDA graphs. Private to pipeline.
#pragma once

#include <compare>
#include <map>
#include <optional>

#include "kernels/runtime/graph.h"
#include "pipeline/stage.h"

namespace pipeoptim {

// A pass over a stage's layers enqueues the same kernels with the same arguments whenever it uses the same
// slot, weights and gradient mode. The first time it runs as it is, so that libraries load what they need;
// the second time it is captured, and from then on launched. In a schedule's steady state slots take turns,
// so after two turns every pass is one launch.
class GraphCache {
 public:
  struct Key {
    std::optional<Stage::Part> backward = {};  // none: the forward
    int slot = 0;
    WeightSource source = WeightSource::kLive;
    int version_slot = -1;
    int predicted_slot = -1;
    GradientMode gradients = GradientMode::kStore;
    friend auto operator<=>(const Key&, const Key&) = default;
  };

  template <typename Issue>
  void run(Stream& stream, const Key& key, const Issue& issue) {
    const auto [found, first] = passes_.try_emplace(key);
    std::optional<Graph>& graph = found->second;
    if (first) return issue();
    if (!graph) graph.emplace(Graph::capture(stream, issue));
    graph->launch(stream);
  }

 private:
  std::map<Key, std::optional<Graph>> passes_;
};

}  // namespace pipeoptim
