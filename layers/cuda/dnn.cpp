// Convolutions on CUDA: cuDNN with NHWC tensors and KRSC filters in fp32 (no TF32). Algorithms come from
// cuDNN's heuristics, not from timing, and deterministic ones first, so that two runs do the same.
#include <cudnn.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

#include "layers/backend.h"
#include "layers/bias.h"
#include "layers/cuda/handles.h"

namespace pipeoptim::cuda {
namespace {

constexpr std::size_t kMaxWorkspace = std::size_t{1} << 30;  // bytes that one algorithm may ask for

void check(cudnnStatus_t status, const char* call,
           std::source_location where = std::source_location::current()) {
  if (status != CUDNN_STATUS_SUCCESS) throw DeviceError(call, cudnnGetErrorString(status), where);
}

cudnnHandle_t create_handle() {
  cudnnHandle_t handle = nullptr;
  check(cudnnCreate(&handle), "cudnnCreate");
  return handle;
}

// A handle that enqueues on the stream (null: for planning). The device must be the current one.
cudnnHandle_t handle_of(Device device, void* stream) {
  thread_local HandleCache<cudnnHandle_t, cudnnDestroy> cache;
  const cudnnHandle_t handle = cache.get(device, stream, create_handle);
  check(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "cudnnSetStream");
  return handle;
}

int narrow(std::int64_t extent) {
  if (extent > std::numeric_limits<int>::max()) {
    throw std::invalid_argument("convolution: extent " + std::to_string(extent) + " is too large for cuDNN");
  }
  return static_cast<int>(extent);
}

class TensorDescriptor {
 public:
  explicit TensorDescriptor(const Shape& nhwc) {
    cudnnTensorDescriptor_t created = nullptr;
    check(cudnnCreateTensorDescriptor(&created), "cudnnCreateTensorDescriptor");
    owned_.reset(created);
    check(cudnnSetTensor4dDescriptor(created, CUDNN_TENSOR_NHWC, CUDNN_DATA_FLOAT, narrow(nhwc[0]),
                                     narrow(nhwc[3]), narrow(nhwc[1]), narrow(nhwc[2])),
          "cudnnSetTensor4dDescriptor");
  }
  cudnnTensorDescriptor_t get() const { return owned_.get(); }

 private:
  Owned<cudnnTensorDescriptor_t, cudnnDestroyTensorDescriptor> owned_;
};

class FilterDescriptor {
 public:
  explicit FilterDescriptor(const ConvolutionSpec& spec) {
    cudnnFilterDescriptor_t created = nullptr;
    check(cudnnCreateFilterDescriptor(&created), "cudnnCreateFilterDescriptor");
    owned_.reset(created);
    check(cudnnSetFilter4dDescriptor(created, CUDNN_DATA_FLOAT, CUDNN_TENSOR_NHWC, narrow(spec.out_channels),
                                     narrow(spec.input[3] / spec.groups), narrow(spec.kernel),
                                     narrow(spec.kernel)),
          "cudnnSetFilter4dDescriptor");
  }
  cudnnFilterDescriptor_t get() const { return owned_.get(); }

 private:
  Owned<cudnnFilterDescriptor_t, cudnnDestroyFilterDescriptor> owned_;
};

class GeometryDescriptor {
 public:
  explicit GeometryDescriptor(const ConvolutionSpec& spec) {
    cudnnConvolutionDescriptor_t created = nullptr;
    check(cudnnCreateConvolutionDescriptor(&created), "cudnnCreateConvolutionDescriptor");
    owned_.reset(created);
    const int padding = narrow(spec.padding);
    const int stride = narrow(spec.stride);
    const int dilation = narrow(spec.dilation);
    check(cudnnSetConvolution2dDescriptor(created, padding, padding, stride, stride, dilation, dilation,
                                          CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
          "cudnnSetConvolution2dDescriptor");
    check(cudnnSetConvolutionGroupCount(created, narrow(spec.groups)), "cudnnSetConvolutionGroupCount");
    check(cudnnSetConvolutionMathType(created, CUDNN_FMA_MATH), "cudnnSetConvolutionMathType");
  }
  cudnnConvolutionDescriptor_t get() const { return owned_.get(); }

 private:
  Owned<cudnnConvolutionDescriptor_t, cudnnDestroyConvolutionDescriptor> owned_;
};

// One direction's algorithm and the workspace that it needs.
template <typename Algorithm>
struct Choice {
  Algorithm algorithm{};
  std::size_t workspace = 0;
};

// The first usable candidate of cuDNN's ranking, a deterministic one where there is any.
template <typename Candidates>
auto first_usable(const Candidates& candidates, int count, const std::string& direction) {
  const auto end = candidates.begin() + count;
  const auto usable = [](const auto& candidate) {
    return candidate.status == CUDNN_STATUS_SUCCESS && candidate.memory <= kMaxWorkspace;
  };
  auto found = std::find_if(candidates.begin(), end, [&](const auto& candidate) {
    return usable(candidate) && candidate.determinism == CUDNN_DETERMINISTIC;
  });
  if (found == end) found = std::find_if(candidates.begin(), end, usable);
  if (found == end) throw DeviceError("cuDNN convolution, " + direction, "no algorithm for this shape");
  return found->algo;
}

class CudaConvolution final : public ConvolutionPlan {
 public:
  CudaConvolution(Device device, const ConvolutionSpec& spec)
      : has_bias_(spec.bias),
        output_(convolution_output(spec)),
        x_(spec.input),
        w_(spec),
        y_(output_),
        geometry_(spec) {
    const DeviceGuard current(device);
    const cudnnHandle_t handle = handle_of(device, nullptr);
    choose_forward(handle);
    choose_backward_data(handle);
    choose_backward_weights(handle);
  }

  std::size_t workspace_bytes() const override {
    return std::max({forward_.workspace, data_.workspace, weights_.workspace});
  }

  void forward(Stream& stream, const ConvolutionForward& operands, std::byte* workspace) const override {
    if ((operands.bias != nullptr) != has_bias_) {
      throw std::invalid_argument("convolution: the plan and the call disagree about a bias");
    }
    const DeviceGuard current(stream.device());
    check(
        cudnnConvolutionForward(handle_of(stream.device(), stream.native()), &kOne, x_.get(), operands.input,
                                w_.get(), operands.weights, geometry_.get(), forward_.algorithm, workspace,
                                forward_.workspace, &kZero, y_.get(), operands.output),
        "cudnnConvolutionForward");
    if (has_bias_) {
      add_bias(stream, {output_.elements() / output_[3], output_[3]}, operands.bias, operands.output);
    }
  }

  void backward_data(Stream& stream, const ConvolutionBackwardData& operands,
                     std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    check(cudnnConvolutionBackwardData(handle_of(stream.device(), stream.native()), &kOne, w_.get(),
                                       operands.weights, y_.get(), operands.output_gradient, geometry_.get(),
                                       data_.algorithm, workspace, data_.workspace, &kZero, x_.get(),
                                       operands.input_gradient),
          "cudnnConvolutionBackwardData");
  }

  void backward_weights(Stream& stream, const ConvolutionBackwardWeights& operands,
                        std::byte* workspace) const override {
    const DeviceGuard current(stream.device());
    const float* const beta = operands.mode == GradientMode::kAdd ? &kOne : &kZero;
    check(cudnnConvolutionBackwardFilter(handle_of(stream.device(), stream.native()), &kOne, x_.get(),
                                         operands.input, y_.get(), operands.output_gradient, geometry_.get(),
                                         weights_.algorithm, workspace, weights_.workspace, beta, w_.get(),
                                         operands.weight_gradient),
          "cudnnConvolutionBackwardFilter");
  }

 private:
  static constexpr float kOne = 1;
  static constexpr float kZero = 0;

  void choose_forward(cudnnHandle_t handle) {
    std::array<cudnnConvolutionFwdAlgoPerf_t, CUDNN_CONVOLUTION_FWD_ALGO_COUNT> candidates{};
    int count = 0;
    check(cudnnGetConvolutionForwardAlgorithm_v7(handle, x_.get(), w_.get(), geometry_.get(), y_.get(),
                                                 static_cast<int>(candidates.size()), &count,
                                                 candidates.data()),
          "cudnnGetConvolutionForwardAlgorithm_v7");
    forward_.algorithm = first_usable(candidates, count, "forward");
    check(cudnnGetConvolutionForwardWorkspaceSize(handle, x_.get(), w_.get(), geometry_.get(), y_.get(),
                                                  forward_.algorithm, &forward_.workspace),
          "cudnnGetConvolutionForwardWorkspaceSize");
  }
  void choose_backward_data(cudnnHandle_t handle) {
    std::array<cudnnConvolutionBwdDataAlgoPerf_t, CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT> candidates{};
    int count = 0;
    check(cudnnGetConvolutionBackwardDataAlgorithm_v7(handle, w_.get(), y_.get(), geometry_.get(), x_.get(),
                                                      static_cast<int>(candidates.size()), &count,
                                                      candidates.data()),
          "cudnnGetConvolutionBackwardDataAlgorithm_v7");
    data_.algorithm = first_usable(candidates, count, "backward data");
    check(cudnnGetConvolutionBackwardDataWorkspaceSize(handle, w_.get(), y_.get(), geometry_.get(), x_.get(),
                                                       data_.algorithm, &data_.workspace),
          "cudnnGetConvolutionBackwardDataWorkspaceSize");
  }
  void choose_backward_weights(cudnnHandle_t handle) {
    std::array<cudnnConvolutionBwdFilterAlgoPerf_t, CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT> candidates{};
    int count = 0;
    check(cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle, x_.get(), y_.get(), geometry_.get(), w_.get(),
                                                        static_cast<int>(candidates.size()), &count,
                                                        candidates.data()),
          "cudnnGetConvolutionBackwardFilterAlgorithm_v7");
    weights_.algorithm = first_usable(candidates, count, "backward weights");
    check(cudnnGetConvolutionBackwardFilterWorkspaceSize(handle, x_.get(), y_.get(), geometry_.get(),
                                                         w_.get(), weights_.algorithm, &weights_.workspace),
          "cudnnGetConvolutionBackwardFilterWorkspaceSize");
  }

  bool has_bias_;
  Shape output_;
  TensorDescriptor x_;
  FilterDescriptor w_;
  TensorDescriptor y_;
  GeometryDescriptor geometry_;
  Choice<cudnnConvolutionFwdAlgo_t> forward_;
  Choice<cudnnConvolutionBwdDataAlgo_t> data_;
  Choice<cudnnConvolutionBwdFilterAlgo_t> weights_;
};

}  // namespace
}  // namespace pipeoptim::cuda

namespace pipeoptim::detail {

std::unique_ptr<ConvolutionPlan> make_cuda_convolution(Device device, const ConvolutionSpec& spec) {
  return std::make_unique<cuda::CudaConvolution>(device, spec);
}

}  // namespace pipeoptim::detail
