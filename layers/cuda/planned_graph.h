// A plan of cuDNN's graph interface with the operands that it has met.
#pragma once

#include <cudnn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/stream.h"
#include "layers/cuda/graph_plan.h"
#include "layers/cuda/variant_packs.h"

namespace pipeoptim::cuda {

// The calling thread's handle for planning. Plans keep it, as they may outlive the thread. The device must be
// the current one.
std::shared_ptr<cudnnContext> planning_handle(Device device);

// For one stream at a time: operands that were not met before are remembered.
class PlannedGraph {
 public:
  PlannedGraph() : packs_({}) {}
  // `ids`: of the graph's tensors; `name`: for messages.
  PlannedGraph(std::string name, GraphPlan plan, std::vector<std::int64_t> ids);

  std::size_t workspace_bytes() const { return plan_.workspace_bytes; }
  // Enqueues it; tensors in the order of the ids. Throws DeviceError.
  void run(Stream& stream, const PlanAddresses& addresses);

 private:
  std::string name_;
  GraphPlan plan_;
  VariantPacks packs_;
};

}  // namespace pipeoptim::cuda
