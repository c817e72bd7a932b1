// Checks arguments and picks the backend.
#include "layers/provider.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels/runtime/names.h"
#include "layers/backend.h"

namespace pipeoptim {
namespace {

std::int64_t checked_leading(const char* name, std::int64_t leading, std::int64_t row_length) {
  if (leading == 0) return row_length;
  if (leading < row_length) {
    throw std::invalid_argument(std::string("gemm: leading extent ") + std::to_string(leading) + " of " +
                                name + " is below its row length " + std::to_string(row_length));
  }
  return leading;
}

Gemm checked(Gemm product) {
  if (product.rows < 0 || product.columns < 0 || product.inner < 0) {
    throw std::invalid_argument("gemm: negative extent in " + std::to_string(product.rows) + " x " +
                                std::to_string(product.columns) + " x " + std::to_string(product.inner));
  }
  const bool a_flipped = product.transpose_a == Transpose::kYes;
  const bool b_flipped = product.transpose_b == Transpose::kYes;
  product.leading_a = checked_leading("a", product.leading_a, a_flipped ? product.rows : product.inner);
  product.leading_b = checked_leading("b", product.leading_b, b_flipped ? product.inner : product.columns);
  product.leading_c = checked_leading("c", product.leading_c, product.columns);
  if (product.inner == 0) throw std::invalid_argument("gemm: the inner extent is 0");
  return product;
}

void require(bool holds, const ConvolutionSpec& spec, const std::string& what) {
  if (!holds) throw std::invalid_argument("convolution of " + spec.input.to_string() + ": " + what);
}

std::int64_t output_extent(const ConvolutionSpec& spec, int axis) {
  const std::int64_t reach = spec.dilation * (spec.kernel - 1) + 1;
  const std::int64_t padded = spec.input[axis] + 2 * spec.padding;
  require(padded >= reach, spec,
          "the kernel reaches over " + std::to_string(reach) + " pixels, the padded input has " +
              std::to_string(padded));
  return (padded - reach) / spec.stride + 1;
}

// For messages: of a product in bf16, what is stored in it.
std::string stored(const ElementTypes& types) {
  const bool input = types.input == ElementType::kBf16, output = types.output == ElementType::kBf16;
  if (!input && !output) return "";
  return input && output ? " in and out" : input ? " in" : " out";
}

void check_types(MatrixPrecision precision, const ElementTypes& types, const std::string& what) {
  if (precision == MatrixPrecision::kBf16 || types == ElementTypes{}) return;
  throw std::invalid_argument(what + ": only products in bf16 have tensors in bf16");
}

}  // namespace

// Names are in the order of their enumeration.
const std::vector<std::string>& matrix_precision_names() {
  static const std::vector<std::string> names{"fp32", "tf32", "bf16"};
  return names;
}

MatrixPrecision matrix_precision(const std::string& name) {
  return value_named<MatrixPrecision>("matrix precision", name, matrix_precision_names());
}

const std::vector<std::string>& row_kernels_names() {
  static const std::vector<std::string> names{"own", "cudnn"};
  return names;
}

RowKernels row_kernels(const std::string& name) {
  return value_named<RowKernels>("row kernels", name, row_kernels_names());
}

void gemm(Stream& stream, const Gemm& product) { gemm_batched(stream, product, {.count = 1}); }

void gemm_batched(Stream& stream, const Gemm& product, const GemmBatch& batch) {
  if (batch.count < 0 || batch.outer < 0) throw std::invalid_argument("gemm: the batch has a negative count");
  const Gemm filled = checked(product);
  if (batch.count == 0 || batch.outer == 0 || product.rows == 0 || product.columns == 0) return;
  if (stream.device().backend == Backend::kCuda) return detail::cuda_gemm(stream, filled, batch);
  detail::host_gemm(stream, filled, batch);
}

ElementTypes product_types(MatrixPrecision precision, ElementTypes offered) {
  return precision == MatrixPrecision::kBf16 ? offered : ElementTypes{};
}

std::string describe(const LinearSpec& spec) {
  std::string text = "linear " + std::to_string(spec.rows) + " x " + std::to_string(spec.in) + " -> " +
                     std::to_string(spec.out);
  if (spec.precision == MatrixPrecision::kTf32) text += ", tf32";
  if (spec.precision == MatrixPrecision::kBf16) text += ", bf16" + stored(spec.types);
  return text;
}

std::unique_ptr<LinearPlan> make_linear(Device device, int threads, const LinearSpec& spec) {
  if (spec.rows < 1 || spec.in < 1 || spec.out < 1) {
    throw std::invalid_argument(describe(spec) + ": all extents must be positive");
  }
  check_types(spec.precision, spec.types, describe(spec));
  if (device.backend == Backend::kCuda) return detail::make_cuda_linear(device, spec);
  return detail::make_host_linear(threads, spec);
}

std::string describe(const ConvolutionSpec& spec) {
  std::string text = "convolution of " + spec.input.to_string() + " to " + std::to_string(spec.out_channels) +
                     " channels, kernel " + std::to_string(spec.kernel) + ", stride " +
                     std::to_string(spec.stride) + ", padding " + std::to_string(spec.padding) +
                     ", dilation " + std::to_string(spec.dilation) + ", " + std::to_string(spec.groups) +
                     (spec.groups == 1 ? " group" : " groups");
  if (spec.bias) text += ", with bias";
  if (spec.precision == MatrixPrecision::kTf32) text += ", tf32";
  if (spec.precision == MatrixPrecision::kBf16) text += ", bf16" + stored(spec.types);
  return text;
}

void gemm_here(const Gemm& product) {
  const Gemm filled = checked(product);
  if (product.rows > 0 && product.columns > 0) detail::host_gemm_here(filled);
}

Shape convolution_output(const ConvolutionSpec& spec) {
  require(spec.input.rank() == 4 && spec.input.elements() > 0, spec, "the input must be {N, H, W, C}");
  require(spec.out_channels > 0, spec, "needs output channels");
  require(spec.kernel > 0 && spec.stride > 0 && spec.dilation > 0 && spec.padding >= 0, spec,
          "kernel, stride and dilation must be positive, padding not negative");
  require(spec.groups > 0 && spec.input[3] % spec.groups == 0 && spec.out_channels % spec.groups == 0, spec,
          std::to_string(spec.groups) + " groups do not divide " + std::to_string(spec.input[3]) +
              " input and " + std::to_string(spec.out_channels) + " output channels");
  return {spec.input[0], output_extent(spec, 1), output_extent(spec, 2), spec.out_channels};
}

std::int64_t convolution_weights(const ConvolutionSpec& spec) {
  return spec.out_channels * spec.kernel * spec.kernel * (spec.input[3] / spec.groups);
}

double convolution_flops(const ConvolutionSpec& spec) {
  const double per_output =
      2.0 * static_cast<double>(spec.kernel * spec.kernel * (spec.input[3] / spec.groups));
  return per_output * static_cast<double>(convolution_output(spec).elements());
}

std::unique_ptr<ConvolutionPlan> make_convolution(Device device, int threads, const ConvolutionSpec& spec) {
  convolution_output(spec);  // throws where the spec is wrong
  check_types(spec.precision, spec.types, describe(spec));
  if (device.backend == Backend::kCuda) return detail::make_cuda_convolution(device, spec);
  return detail::make_host_convolution(threads, spec);
}

}  // namespace pipeoptim
