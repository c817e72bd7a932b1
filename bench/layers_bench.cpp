// How near to the machine's ceilings are the layers? One row a layer: forward, input gradient (dx) and weight
// gradient (dw), as a rate and in per cent of the ceiling: of a matrix product where arithmetic bounds the
// layer (GFLOP/s), of a copy where memory does (GB/s).
#include <string>

#include "bench/precision.h"
#include "bench/support.h"
#include "layers/batch_norm.h"
#include "layers/conv2d.h"
#include "layers/linear.h"
#include "layers/provider.h"
#include "layers/softmax_cross_entropy.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

// The ceilings: seconds for a unit of work, which is an operation or a byte.
class MatrixProduct {
 public:
  explicit MatrixProduct(Stream& stream) : stream_(stream) {}
  double seconds_per_unit() {
    const Gemm product{
        .rows = kN, .columns = kN, .inner = kN, .a = a_.data(), .b = b_.data(), .c = c_.data()};
    return seconds(stream_, [&] { gemm(stream_, product); }) / (2.0 * kN * kN * kN);
  }

 private:
  static constexpr std::int64_t kN = 1024;
  Stream& stream_;
  Buffer<float> a_ = random_buffer(kN * kN), b_ = random_buffer(kN * kN), c_ = random_buffer(kN * kN);
};

// Its arrays are larger than the caches, so it leaves nothing of a layer's data there.
class Copy {
 public:
  explicit Copy(Stream& stream) : stream_(stream) {}
  double seconds_per_unit() {
    return seconds(stream_, [&] { enqueue(); }) / (2.0 * sizeof(float) * kN);
  }

 private:
  static constexpr std::int64_t kN = 1 << 24;

  void enqueue() {
    if (stream_.device().backend == Backend::kCuda) {
      return stream_.copy(to_.data(), from_.data(), sizeof(float) * kN);
    }
    stream_.submit([from = from_.data(), to = to_.data(), count = stream_.threads()] {
#pragma omp parallel for num_threads(count) schedule(static, 1)
      for (int thread = 0; thread < count; ++thread) {
        const Part part = part_of(kN, thread, count);
        std::copy(from + part.begin, from + part.end, to + part.begin);
      }
    });
  }

  Stream& stream_;
  Buffer<float> from_ = random_buffer(kN), to_ = random_buffer(kN);
};

// Measures what is enqueued, each time behind the ceiling, and reports both.
template <typename Ceiling>
class Measurement {
 public:
  Measurement(Stream& stream, Ceiling& ceiling, std::string name, double units)
      : stream_(stream), ceiling_(ceiling), name_(std::move(name)), units_(units) {}

  template <typename Enqueue>
  double run(const Enqueue& enqueue) {
    ceilings_.add(ceiling_.seconds_per_unit());
    const double time = seconds(stream_, enqueue);
    times_.add(time);
    return time;
  }
  void report(benchmark::State& state) const {
    state.counters[name_] = units_ / times_.median() * 1e-9;
    state.counters[name_ + "%"] = 100 * ceilings_.median() * units_ / times_.median();
  }

 private:
  Stream& stream_;
  Ceiling& ceiling_;
  std::string name_;
  double units_;
  Samples times_, ceilings_;
};

// A planned layer with its memory.
class PlannedLayer {
 public:
  PlannedLayer(Layer& layer, const Shape& input)
      : layer_(layer),
        plan_(layer.plan(device(), threads(), input)),
        input_shape_(input),
        input_(random_buffer(input.elements())),
        output_(random_buffer(plan_.output.elements())),
        output_gradient_(random_buffer(plan_.output.elements())),
        input_gradient_(random_buffer(input.elements())),
        stash_(device(), plan_.stash_bytes),
        workspace_(device(), plan_.workspace_bytes) {
    for (const Parameter& parameter : layer.parameters()) {
      weights_.push_back(random_buffer(parameter.shape.elements(), 0.1F));
      gradients_.push_back(random_buffer(parameter.shape.elements()));
    }
    for (const State& state : layer.states()) states_.push_back(random_buffer(state.shape.elements()));
    for (const auto& buffer : weights_) weight_pointers_.push_back(buffer.data());
    for (const auto& buffer : gradients_) gradient_pointers_.push_back(buffer.data());
    for (const auto& buffer : states_) state_pointers_.push_back(buffer.data());
  }

  const LayerPlan& plan() const { return plan_; }
  void forward(Stream& stream) {
    layer_.forward({.stream = stream,
                    .weights = {weight_pointers_},
                    .states = state_pointers_,
                    .input = {input_.data(), input_shape_},
                    .output = {output_.data(), plan_.output},
                    .stash = stash_.data(),
                    .workspace = workspace_.data(),
                    .random = {}});
  }
  void backward_input(Stream& stream) { layer_.backward_input(backward_context(stream)); }
  void backward_weights(Stream& stream) { layer_.backward_weights(backward_context(stream)); }

 private:
  BackwardContext backward_context(Stream& stream) {
    return {.stream = stream,
            .weights = {weight_pointers_},
            .gradients = {gradient_pointers_},
            .input = {input_.data(), input_shape_},
            .output = {output_.data(), plan_.output},
            .output_gradient = {output_gradient_.data(), plan_.output},
            .input_gradient = {input_gradient_.data(), input_shape_},
            .stash = stash_.data(),
            .workspace = workspace_.data(),
            .random = {}};
  }

  Layer& layer_;
  LayerPlan plan_;
  Shape input_shape_;
  Buffer<float> input_, output_, output_gradient_, input_gradient_;
  Memory stash_, workspace_;
  std::vector<Buffer<float>> weights_, gradients_, states_;
  std::vector<const float*> weight_pointers_;
  std::vector<float*> gradient_pointers_, state_pointers_;
};

// A layer whose three parts are bound by arithmetic, each with a third of the operations.
void measure_products(benchmark::State& state, Layer& layer, const Shape& input) {
  Stream stream(device(), {.threads = threads()});
  MatrixProduct ceiling(stream);
  PlannedLayer planned(layer, input);
  const double flops = planned.plan().forward_flops;
  Measurement<MatrixProduct> forward(stream, ceiling, "forward", flops), dx(stream, ceiling, "dx", flops),
      dw(stream, ceiling, "dw", flops);
  for ([[maybe_unused]] auto _ : state) {
    const double time = forward.run([&] { planned.forward(stream); }) + dx.run([&] {
      planned.backward_input(stream);
    }) + dw.run([&] { planned.backward_weights(stream); });
    state.SetIterationTime(time);
  }
  for (const auto* measurement : {&forward, &dx, &dw}) measurement->report(state);
  state.SetLabel(layer.describe() + ", GFLOP/s, % of sgemm 1024");
}

void conv2d(benchmark::State& state, const Shape& input, std::int64_t out, std::int64_t stride) {
  Conv2d layer({.in = input[3], .out = out, .kernel = 3, .stride = stride, .padding = 1, .bias = Bias::kNo});
  layer.set_precision(precision());
  measure_products(state, layer, input);
}

void linear(benchmark::State& state, std::int64_t in, std::int64_t out) {
  Linear layer(in, out);
  layer.set_precision(precision());
  measure_products(state, layer, {128, in});
}

// The forward reads its input twice, for the statistics and then for the output; the backward does the same
// with two arrays. The weight gradient is done by then.
void batch_norm_relu(benchmark::State& state, const Shape& input) {
  Stream stream(device(), {.threads = threads()});
  Copy ceiling(stream);
  BatchNorm2d layer(input[3], {.activation = Activation::kRelu});
  PlannedLayer planned(layer, input);
  const double array = sizeof(float) * static_cast<double>(input.elements());
  Measurement<Copy> forward(stream, ceiling, "forward", 3 * array), dx(stream, ceiling, "dx", 5 * array);
  for ([[maybe_unused]] auto _ : state) {
    state.SetIterationTime(forward.run([&] { planned.forward(stream); }) +
                           dx.run([&] { planned.backward_input(stream); }));
  }
  for (const auto* measurement : {&forward, &dx}) measurement->report(state);
  state.SetLabel(layer.describe() + ", GB/s, % of copy");
}

// One pass gives the loss and its gradient.
void softmax_cross_entropy(benchmark::State& state, std::int64_t records, std::int64_t classes) {
  Stream stream(device(), {.threads = threads()});
  Copy ceiling(stream);
  SoftmaxCrossEntropy loss;
  const Shape shape{records, classes};
  const Buffer<float> logits = random_buffer(shape.elements()), gradient = random_buffer(shape.elements());
  const Memory workspace(device(), loss.workspace_bytes(shape));
  const Buffer<std::int32_t> labels(device(), static_cast<std::size_t>(records)), correct(device(), 1);
  const Buffer<double> sum(device(), 1);
  const LossContext context{.stream = stream,
                            .logits = {logits.data(), shape},
                            .labels = labels.data(),
                            .logits_gradient = {gradient.data(), shape},
                            .loss_sum = sum.data(),
                            .correct = correct.data(),
                            .workspace = workspace.data()};
  Measurement<Copy> both(stream, ceiling, "both", 2.0 * sizeof(float) * static_cast<double>(logits.size()));
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(both.run([&] { loss.run(context); }));
  both.report(state);
  state.SetLabel("loss and gradient, GB/s, % of copy");
}

// NOLINTBEGIN(cert-err58-cpp): the library registers benchmarks so.
#define PIPEOPTIM_LAYER(...) \
  BENCHMARK_CAPTURE(__VA_ARGS__)->UseManualTime()->Iterations(20)->Unit(benchmark::kMillisecond)
PIPEOPTIM_LAYER(conv2d, 28x28x1, Shape{128, 28, 28, 1}, 16, 1);
PIPEOPTIM_LAYER(conv2d, 14x14x16, Shape{128, 14, 14, 16}, 32, 2);
PIPEOPTIM_LAYER(conv2d, 32x32x16, Shape{128, 32, 32, 16}, 16, 1);
PIPEOPTIM_LAYER(conv2d, 16x16x32, Shape{128, 16, 16, 32}, 32, 1);
PIPEOPTIM_LAYER(conv2d, 8x8x64, Shape{128, 8, 8, 64}, 64, 1);
PIPEOPTIM_LAYER(linear, 1024, 1024, 1024);
PIPEOPTIM_LAYER(batch_norm_relu, 32x32x16, Shape{128, 32, 32, 16});
PIPEOPTIM_LAYER(softmax_cross_entropy, 4096x1000, 4096, 1000);
// NOLINTEND(cert-err58-cpp)

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
