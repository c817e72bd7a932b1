// The one place that knows oneDNN's two interfaces: 2.x describes an operation and then asks for a primitive,
// 3.x asks directly. Plain memory in and out, user scratchpads, the same geometry for all three directions.
#pragma once

#include <dnnl.hpp>

namespace pipeoptim::host {

struct ConvolutionGeometry {
  dnnl::memory::dims strides;
  dnnl::memory::dims dilates;  // 0 is dense
  dnnl::memory::dims padding;
};

// Weights of all three directions and their operands; `any` where oneDNN may choose.
struct ConvolutionMemory {
  dnnl::memory::desc input;
  dnnl::memory::desc weights;
  dnnl::memory::desc bias;  // of zero size where there is none
  dnnl::memory::desc output;
};

using ForwardDescriptor = dnnl::convolution_forward::primitive_desc;
using BackwardDataDescriptor = dnnl::convolution_backward_data::primitive_desc;
using BackwardWeightsDescriptor = dnnl::convolution_backward_weights::primitive_desc;

// Factors and result of a product.
struct MatmulMemory {
  dnnl::memory::desc input;
  dnnl::memory::desc weights;
  dnnl::memory::desc bias;  // of zero size where there is none
  dnnl::memory::desc output;
};

inline dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

#if DNNL_VERSION_MAJOR >= 3

inline void append_relu(dnnl::post_ops& operations) {
  operations.append_eltwise(dnnl::algorithm::eltwise_relu, 0, 0);
}

inline dnnl::matmul::primitive_desc describe_matmul(const dnnl::engine& engine, const MatmulMemory& memory,
                                                    const dnnl::post_ops& epilogue) {
  dnnl::primitive_attr attributes = user_scratchpad();
  attributes.set_post_ops(epilogue);
  return {engine, memory.input, memory.weights, memory.bias, memory.output, attributes};
}

inline ForwardDescriptor describe_forward(const dnnl::engine& engine, const ConvolutionMemory& memory,
                                          const ConvolutionGeometry& geometry) {
  return {engine,
          dnnl::prop_kind::forward_training,
          dnnl::algorithm::convolution_direct,
          memory.input,
          memory.weights,
          memory.bias,
          memory.output,
          geometry.strides,
          geometry.dilates,
          geometry.padding,
          geometry.padding,
          user_scratchpad()};
}
inline BackwardDataDescriptor describe_backward_data(const dnnl::engine& engine,
                                                     const ConvolutionMemory& memory,
                                                     const ConvolutionGeometry& geometry,
                                                     const ForwardDescriptor& hint) {
  return {engine,           dnnl::algorithm::convolution_direct,
          memory.input,     memory.weights,
          memory.output,    geometry.strides,
          geometry.dilates, geometry.padding,
          geometry.padding, hint,
          user_scratchpad()};
}
inline BackwardWeightsDescriptor describe_backward_weights(const dnnl::engine& engine,
                                                           const ConvolutionMemory& memory,
                                                           const ConvolutionGeometry& geometry,
                                                           const ForwardDescriptor& hint) {
  return {engine,           dnnl::algorithm::convolution_direct,
          memory.input,     memory.weights,
          memory.output,    geometry.strides,
          geometry.dilates, geometry.padding,
          geometry.padding, hint,
          user_scratchpad()};
}

#else

inline void append_relu(dnnl::post_ops& operations) {
  operations.append_eltwise(1, dnnl::algorithm::eltwise_relu, 0, 0);
}

inline dnnl::matmul::primitive_desc describe_matmul(const dnnl::engine& engine, const MatmulMemory& memory,
                                                    const dnnl::post_ops& epilogue) {
  dnnl::primitive_attr attributes = user_scratchpad();
  attributes.set_post_ops(epilogue);
  return {{memory.input, memory.weights, memory.bias, memory.output}, attributes, engine};
}

inline ForwardDescriptor describe_forward(const dnnl::engine& engine, const ConvolutionMemory& memory,
                                          const ConvolutionGeometry& geometry) {
  return {
      {dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct, memory.input, memory.weights,
       memory.bias, memory.output, geometry.strides, geometry.dilates, geometry.padding, geometry.padding},
      user_scratchpad(),
      engine};
}
inline BackwardDataDescriptor describe_backward_data(const dnnl::engine& engine,
                                                     const ConvolutionMemory& memory,
                                                     const ConvolutionGeometry& geometry,
                                                     const ForwardDescriptor& hint) {
  return {{dnnl::algorithm::convolution_direct, memory.input, memory.weights, memory.output, geometry.strides,
           geometry.dilates, geometry.padding, geometry.padding},
          user_scratchpad(),
          engine,
          hint};
}
inline BackwardWeightsDescriptor describe_backward_weights(const dnnl::engine& engine,
                                                           const ConvolutionMemory& memory,
                                                           const ConvolutionGeometry& geometry,
                                                           const ForwardDescriptor& hint) {
  return {{dnnl::algorithm::convolution_direct, memory.input, memory.weights, memory.output, geometry.strides,
           geometry.dilates, geometry.padding, geometry.padding},
          user_scratchpad(),
          engine,
          hint};
}

#endif

}  // namespace pipeoptim::host
