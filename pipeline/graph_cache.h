// The compute instructions of one stage as CUDA graphs. Private to pipeline.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>

#include "kernels/runtime/graph.h"
#include "layers/layer.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

// A stage enqueues the same kernels with the same arguments for all instructions of one key; what changes
// from one to the next is posted (kernels/runtime/turns.h). The first one runs as it is, so that libraries
// load what they need; the second is captured, and from then on launched. In a schedule's steady state slots
// take turns, so after two turns every instruction is one launch.
class GraphCache {
 public:
  struct Key {
    Op op = Op::kForward;
    int slot = -1;
    WeightSource source = WeightSource::kLive;
    int version_slot = -1;
    int predicted_slot = -1;
    int horizon = 0;  // of a prediction: a copy is other work
    GradientMode gradients = GradientMode::kStore;
    friend auto operator<=>(const Key&, const Key&) = default;
  };

  template <typename Issue>
  void run(Stream& stream, const Key& key, const Issue& issue) {
    const auto [found, first] = graphs_.try_emplace(key);
    std::optional<Graph>& graph = found->second;
    if (first) return issue();
    if (!graph) graph.emplace(Graph::capture(stream, issue));
    graph->launch(stream);
  }

 private:
  std::map<Key, std::optional<Graph>> graphs_;
};

}  // namespace pipeoptim
