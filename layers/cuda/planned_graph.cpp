#include "layers/cuda/planned_graph.h"

#include <map>
#include <utility>

#include "layers/cuda/cudnn_check.h"
#include "layers/cuda/handles.h"

namespace pipeoptim::cuda {
namespace {

cudnnHandle_t create_handle() {
  cudnnHandle_t handle = nullptr;
  check(cudnnCreate(&handle), "cudnnCreate");
  return handle;
}

// A handle that enqueues on the stream. The device must be the current one.
cudnnHandle_t handle_of(Device device, void* stream) {
  thread_local HandleCache<cudnnHandle_t, cudnnDestroy> cache;
  const cudnnHandle_t handle = cache.get(device, stream, create_handle);
  check(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
  return handle;
}

}  // namespace

std::shared_ptr<cudnnContext> planning_handle(Device device) {
  thread_local std::map<int, std::weak_ptr<cudnnContext>> handles;
  std::shared_ptr<cudnnContext> handle = handles[device.ordinal].lock();
  if (!handle) {
    handle = std::shared_ptr<cudnnContext>(create_handle(), Destroyer<cudnnDestroy>());
    handles[device.ordinal] = handle;
  }
  return handle;
}

PlannedGraph::PlannedGraph(std::string name, GraphPlan plan, std::vector<std::int64_t> ids)
    : name_(std::move(name)), plan_(std::move(plan)), packs_(std::move(ids)) {}

void PlannedGraph::run(Stream& stream, const PlanAddresses& addresses) {
  const DeviceGuard current(stream.device());
  const cudnnHandle_t handle = handle_of(stream.device(), stream.native());
  const cudnnStatus_t status = cudnnBackendExecute(handle, plan_.descriptor, packs_.of(addresses));
  if (status != CUDNN_STATUS_SUCCESS) check(status, "cudnnBackendExecute: " + name_);
}

}  // namespace pipeoptim::cuda
