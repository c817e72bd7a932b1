// cuDNN's C++ frontend, and what our graphs have alike.
#pragma once

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/cuda/graph_plan.h"
#include "layers/tensor.h"

// The frontend has an engine of its own that compiles kernels at run time; we never ask for it. Its calls
// stay unresolved unless something else brings libnvrtc, so that the program starts where that library is
// missing.
#pragma weak nvrtcCreateProgram
#pragma weak nvrtcCompileProgram
#pragma weak nvrtcDestroyProgram
#pragma weak nvrtcGetCUBIN
#pragma weak nvrtcGetCUBINSize
#pragma weak nvrtcGetProgramLog
#pragma weak nvrtcGetProgramLogSize

namespace pipeoptim::cuda {

namespace fe = cudnn_frontend;

using GraphTensor = std::shared_ptr<fe::graph::Tensor_attributes>;
using Extents = std::vector<std::int64_t>;

// cuDNN names axes in the order N, C, H, W, whatever their order in memory.
inline void lay_out(fe::graph::Tensor_attributes& tensor, const Shape& nhwc) {
  const std::int64_t n = nhwc[0], h = nhwc[1], w = nhwc[2], c = nhwc[3];
  tensor.set_dim({n, c, h, w}).set_stride({h * w * c, 1, w * c, c});
}

// What `make` makes, or cuDNN's reason against it.
template <typename Make>
GraphPlan attempt(const Make& make) {
  try {
    return make();
  } catch (const fe::cudnnException& error) {
    return {.refusal = error.what()};
  }
}

// A graph of tensors as they lie in our memory.
class PlannableGraph : public fe::graph::Graph {
 public:
  // The first plan of cuDNN's list that has none of the unwanted notes. Throws fe::cudnnException.
  GraphPlan plan(cudnnHandle_t handle, Engines engines, const std::vector<fe::NumericalNote_t>& unwanted,
                 std::size_t max_workspace) {
    GraphPlan plan;
    if (auto error = build(handle, engines, unwanted, max_workspace); error.is_bad()) {
      plan.refusal = error.get_message();
      return plan;
    }
    // A plan needs its graph no longer.
    const std::shared_ptr<fe::ExecutionPlan> chosen =
        plans.execution_plans.at(static_cast<std::size_t>(plans.candidate));
    plan.descriptor = chosen->get_raw_desc();
    plan.workspace_bytes = static_cast<std::size_t>(chosen->getWorkspaceSize());
    plan.owner = chosen;
    return plan;
  }

 protected:
  // Of the graph's own type, unless the caller sets another.
  GraphTensor take(const Shape& nhwc, std::int64_t id) {
    fe::graph::Tensor_attributes attributes;
    lay_out(attributes, nhwc);
    return tensor(attributes.set_uid(id));
  }
  static void give(const GraphTensor& result, const Shape& nhwc, std::int64_t id, fe::DataType_t type) {
    lay_out(*result, nhwc);
    result->set_output(true).set_uid(id).set_data_type(type);
  }

 private:
  fe::error_t build(cudnnHandle_t handle, Engines engines, const std::vector<fe::NumericalNote_t>& unwanted,
                    std::size_t max_workspace) {
    if (auto error = validate(); error.is_bad()) return error;
    if (auto error = build_operation_graph(handle); error.is_bad()) return error;
    const auto mode = engines == Engines::kBest ? fe::HeurMode_t::A : fe::HeurMode_t::FALLBACK;
    if (auto error = create_execution_plans({mode}); error.is_bad()) return error;
    deselect_numeric_notes(unwanted);
    deselect_workspace_greater_than(static_cast<std::int64_t>(max_workspace));
    if (auto error = check_support(handle); error.is_bad()) return error;
    return build_plans(handle, fe::BuildPlanPolicy_t::HEURISTICS_CHOICE);
  }
};

}  // namespace pipeoptim::cuda
