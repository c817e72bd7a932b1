// Two-dimensional convolution with square kernels over {N, H, W, C}.
#pragma once

#include <memory>

#include "layers/bias.h"
#include "layers/layer.h"
#include "layers/provider.h"

namespace pipeoptim {

struct Conv2dOptions {
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t kernel = 1;
  std::int64_t stride = 1;
  std::int64_t padding = 0;
  std::int64_t dilation = 1;
  std::int64_t groups = 1;
  Bias bias = Bias::kYes;
};

class Conv2d final : public Layer {
 public:
  // Throws std::invalid_argument for options that fit no input.
  explicit Conv2d(Conv2dOptions options);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;  // weight [out, in/groups, k, k], bias [out]
  ElementTypes choose_types(ElementTypes offered) override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward(const BackwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;
  void set_precision(MatrixPrecision precision) override { precision_ = precision; }

 private:
  bool has_bias() const { return options_.bias == Bias::kYes; }
  const ConvolutionPlan& planned() const;
  void run_weights(const BackwardContext& context, Workspace holds) const;

  Conv2dOptions options_;
  MatrixPrecision precision_ = MatrixPrecision::kFp32;
  ElementTypes types_;
  std::unique_ptr<ConvolutionPlan> convolution_;
  Rows output_rows_;
};

}  // namespace pipeoptim
