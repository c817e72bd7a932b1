// An optimizer rule of your own: written once, per element, it gets the update, the prediction for the
// pipeline's forward, and both in one pass, on the host and on CUDA.
//
// The rule here steps by the sign of an average of the gradients, so that every weight moves by the same
// length.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "optim/step.h"

namespace {

struct SignMomentum {
  static constexpr int kSlots = 1;
  static constexpr const char* kSlotNames[kSlots] = {"average"};
  float keep = 0.9f;

  // The new weight; the new state stays in `slots`.
  PO_HD float advance(float w, float g, float* slots, const pipeoptim::StepNow& now) const {
    slots[0] = keep * slots[0] + (1 - keep) * g;
    return w - now.lr * (direction(slots, now.scalars) + now.weight_decay * w);
  }
  // What the linear predictor follows; a function of the state alone.
  PO_HD float direction(const float* slots, const pipeoptim::StepScalars&) const {
    return slots[0] > 0 ? 1.0f : (slots[0] < 0 ? -1.0f : 0.0f);
  }
  // Zero gradients leave the average's sign, so that each coming step goes on in the same direction.
  PO_HD float coast(float w, const float* slots, const pipeoptim::CoastPlan& ahead,
                    float weight_decay) const {
    for (int i = 0; i < ahead.steps; ++i) w -= ahead.step[i].lr * (direction(slots, {}) + weight_decay * w);
    return w;
  }
};

}  // namespace

// Minimizes sum (w - target)^2 / 2 of a few weights, predicting three steps ahead after every update.
int main() {
  using namespace pipeoptim;
  const Device device = Device::host();
  const std::vector<float> target = {1.0f, -2.0f, 0.5f, 3.0f};
  const std::vector<float> rates(3, 0.01f);
  Stream stream(device);
  Buffer<float> weights(device, target.size()), gradients(device, target.size()),
      predicted(device, target.size());
  RuleOptimizer<SignMomentum> optimizer(device, SignMomentum{.keep = 0.8f}, {.beta1 = 0.8}, OptimizerConfig{},
                                        {.elements = static_cast<std::int64_t>(target.size())});
  for (int step = 0; step < 400; ++step) {
    for (std::size_t i = 0; i < target.size(); ++i) gradients.data()[i] = weights.data()[i] - target[i];
    optimizer.update_predict(stream, weights.data(), gradients.data(), rates[0], predicted.data(), rates);
    stream.synchronize();  // only because this host program computes the gradients
  }
  bool close = true;
  for (std::size_t i = 0; i < target.size(); ++i) {
    std::printf("weight %zu: %.3f, three steps ahead %.3f, target %.3f\n", i,
                static_cast<double>(weights.data()[i]), static_cast<double>(predicted.data()[i]),
                static_cast<double>(target[i]));
    close = close && std::abs(weights.data()[i] - target[i]) < 0.1f;
  }
  std::printf("%s\n", close ? "all weights found their targets" : "FAILED: a weight is far from its target");
  return close ? EXIT_SUCCESS : EXIT_FAILURE;
}
