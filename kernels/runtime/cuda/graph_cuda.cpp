// CUDA graphs, captured from one stream. Other threads may call what they like meanwhile (thread-local mode).
#include "kernels/runtime/backend.h"
#include "kernels/runtime/cuda/cuda_check.h"
#include "kernels/runtime/graph.h"

namespace pipeoptim::detail {
namespace {

using cuda::check;
using cuda::DeviceGuard;

cudaStream_t native(StreamImpl& stream) { return static_cast<cudaStream_t>(stream.native()); }

class CudaGraph final : public GraphImpl {
 public:
  CudaGraph(Device device, cudaGraph_t captured) : device_(device) {
    const DeviceGuard guard(device);
    const cudaError_t status = cudaGraphInstantiate(&executable_, captured, 0);
    static_cast<void>(cudaGraphDestroy(captured));
    check(status, "cudaGraphInstantiate");
  }
  ~CudaGraph() override { static_cast<void>(cudaGraphExecDestroy(executable_)); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  void launch(StreamImpl& stream) override {
    const DeviceGuard guard(device_);
    check(cudaGraphLaunch(executable_, native(stream)), "cudaGraphLaunch");
  }

 private:
  Device device_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

void cuda_begin_capture(StreamImpl& stream) {
  check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

std::unique_ptr<GraphImpl> cuda_end_capture(Device device, StreamImpl& stream) {
  cudaGraph_t captured = nullptr;
  check(cudaStreamEndCapture(native(stream), &captured), "cudaStreamEndCapture");
  return std::make_unique<CudaGraph>(device, captured);
}

void cuda_drop_capture(StreamImpl& stream) noexcept {
  cudaGraph_t captured = nullptr;
  static_cast<void>(cudaStreamEndCapture(native(stream), &captured));
  if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));
  static_cast<void>(cudaGetLastError());
}

}  // namespace pipeoptim::detail
