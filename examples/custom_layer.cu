// A layer of your own: Swish with a learned slope a channel, y = x sigmoid(beta x), in one file. The bodies
// run on the host and on CUDA; main checks both gradients by finite differences.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/layer.h"

namespace {

using namespace pipeoptim;

PO_HD float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

struct SwishForward {
  const float *x, *beta;
  float* y;
  std::int64_t channels;
  PO_HD void operator()(std::int64_t i) const { y[i] = x[i] * sigmoid(beta[i % channels] * x[i]); }
};

struct SwishBackwardInput {
  const float *x, *beta, *dy;
  float* dx;
  std::int64_t channels;
  PO_HD void operator()(std::int64_t i) const {
    const float bx = beta[i % channels] * x[i];
    const float s = sigmoid(bx);
    dx[i] = dy[i] * (s + bx * s * (1.0F - s));
  }
};

// One channel's sum in a fixed order: the same bits for any number of threads.
struct SwishBackwardWeights {
  const float *x, *beta, *dy;
  float* dbeta;
  std::int64_t rows, channels;
  bool add;
  PO_HD void operator()(std::int64_t c) const {
    float sum = 0;
    for (std::int64_t i = c; i < rows * channels; i += channels) {
      const float s = sigmoid(beta[c] * x[i]);
      sum += dy[i] * x[i] * x[i] * s * (1.0F - s);
    }
    dbeta[c] = add ? dbeta[c] + sum : sum;
  }
};

class Swish final : public Layer {
 public:
  explicit Swish(std::int64_t channels) : channels_(channels) {}
  std::string describe() const override { return "swish " + std::to_string(channels_); }
  std::vector<Parameter> parameters() const override {
    return {{"beta", {channels_}, {Initializer::Kind::kConstant, 1}, Decay::kNo, Storage::kRowMajor}};
  }
  LayerPlan plan(Device, int, const Shape& input) override {
    if (input.last() != channels_) throw std::invalid_argument(describe() + " got " + input.to_string());
    LayerPlan plan;
    plan.output = input;
    plan.needs = Needs::kInput;  // backward reads x, so nothing goes into the stash
    return plan;
  }
  void forward(const ForwardContext& at) const override {
    for_each(at.stream, at.input.elements(),
             SwishForward{at.input.data, at.weights[0], at.output.data, channels_});
  }
  void backward_input(const BackwardContext& at) const override {
    if (!at.input_gradient.data) return;  // the first layer of a model: nobody reads it
    for_each(at.stream, at.input.elements(),
             SwishBackwardInput{at.input.data, at.weights[0], at.output_gradient.data, at.input_gradient.data,
                                channels_});
  }
  void backward_weights(const BackwardContext& at) const override {
    for_each(at.stream, channels_,
             SwishBackwardWeights{at.input.data, at.weights[0], at.output_gradient.data, at.gradients[0],
                                  at.input.elements() / channels_, channels_,
                                  at.gradients.mode == GradientMode::kAdd});
  }

 private:
  std::int64_t channels_;
};

}  // namespace

int main() {
  const Shape shape{4, 3, 3, 5};
  const auto elements = static_cast<std::size_t>(shape.elements());
  Swish layer(5);
  layer.plan(Device::host(), 1, shape);
  Stream stream(Device::host());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(elements), y(elements), dy(elements), dx(elements), beta(5), dbeta(5);
  for (auto* values : {&x, &dy, &beta})
    std::generate(values->begin(), values->end(), [&] { return normal(random); });
  const float* weights[] = {beta.data()};
  float* gradients[] = {dbeta.data()};

  // The loss is sum(dy * y), so that its gradient with respect to y is dy.
  const auto loss = [&] {
    layer.forward({.stream = stream,
                   .weights = {weights},
                   .states = {},
                   .input = {x.data(), shape},
                   .output = {y.data(), shape},
                   .random = {}});
    stream.synchronize();
    double sum = 0;
    for (std::size_t i = 0; i < elements; ++i) sum += static_cast<double>(dy[i]) * static_cast<double>(y[i]);
    return sum;
  };
  layer.backward({.stream = stream,
                  .weights = {weights},
                  .gradients = {gradients},
                  .input = {x.data(), shape},
                  .output = {},
                  .output_gradient = {dy.data(), shape},
                  .input_gradient = {dx.data(), shape},
                  .random = {}});
  stream.synchronize();
  const auto largest_error = [&](std::vector<float>& values, const std::vector<float>& slopes) {
    double largest = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float centre = values[i];
      const float step = 0.0078125F;
      values[i] = centre + step;
      const double above = loss();
      values[i] = centre - step;
      const double difference = (above - loss()) / static_cast<double>(2 * step);
      values[i] = centre;
      largest = std::max(largest, std::abs(difference - static_cast<double>(slopes[i])));
    }
    return largest;
  };
  const double input_error = largest_error(x, dx);
  const double weight_error = largest_error(beta, dbeta);
  std::printf("largest error of the input gradient %.1e, of the slope's %.1e\n", input_error, weight_error);
  const bool right =
      input_error < 2e-4 && weight_error < 2e-4;  // step^2 / 6 times a third derivative, rounding
  std::printf("%s\n", right ? "both gradients are right" : "FAILED: a gradient is wrong");
  return right ? EXIT_SUCCESS : EXIT_FAILURE;
}
