// How near to the machine's ceilings are the layers? One row a layer: forward, input gradient (dx) and weight
// gradient (dw), as a rate and in per cent of the ceiling: of a matrix product where arithmetic bounds the
// layer (GFLOP/s), of a copy where memory does (GB/s).
#include <string>

#include "bench/choices.h"
#include "bench/no_work.h"
#include "bench/support.h"
#include "layers/activation.h"
#include "layers/attention.h"
#include "layers/batch_norm.h"
#include "layers/concat.h"
#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/embedding.h"
#include "layers/flatten.h"
#include "layers/last_step.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/lstm.h"
#include "layers/pooling.h"
#include "layers/provider.h"
#include "layers/residual.h"
#include "layers/softmax_cross_entropy.h"

using namespace pipeoptim;
using namespace pipeoptim::bench;

namespace {

// The ceilings: seconds for a unit of work, which is an operation or a byte.
class MatrixProduct {
 public:
  static constexpr const char* kRate = "GFLOP/s, % of sgemm 1024";
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
  static constexpr const char* kRate = "GB/s, % of copy";
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
        plan_(plan_of(layer, input)),
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

  // An embedding's input.
  void use_tokens(std::int64_t vocabulary) {
    std::vector<float> tokens(input_.size());
    write_tokens(tokens, vocabulary);
    copy_from_host(input_.data(), tokens.data(), tokens.size() * sizeof(float), device());
  }

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
  // The halves of the backward are measured apart.
  static LayerPlan plan_of(Layer& layer, const Shape& input) {
    layer.set_backward_split(BackwardSplit::kSplit);
    return layer.plan(device(), threads(), input);
  }
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

// What the parts of a layer have to do, in operations or bytes; 0: there is no such part, or it is measured
// with another one.
struct Work {
  double forward = 0, dx = 0, dw = 0;
};

template <typename Ceiling>
void measure(benchmark::State& state, const Layer& layer, PlannedLayer& planned, const Work& work) {
  Stream stream(device(), {.threads = threads()});
  Ceiling ceiling(stream);
  Measurement<Ceiling> forward(stream, ceiling, "forward", work.forward), dx(stream, ceiling, "dx", work.dx),
      dw(stream, ceiling, "dw", work.dw);
  for ([[maybe_unused]] auto _ : state) {
    double time = forward.run([&] { planned.forward(stream); });
    if (work.dx > 0) time += dx.run([&] { planned.backward_input(stream); });
    if (work.dw > 0) time += dw.run([&] { planned.backward_weights(stream); });
    state.SetIterationTime(time);
  }
  forward.report(state);
  if (work.dx > 0) dx.report(state);
  if (work.dw > 0) dw.report(state);
  state.SetLabel(layer.describe() + ", " + Ceiling::kRate);
}

// A layer whose three parts are products with a third of the operations each.
void measure_products(benchmark::State& state, Layer& layer, const Shape& input) {
  PlannedLayer planned(layer, input);
  const double flops = planned.plan().forward_flops;
  measure<MatrixProduct>(state, layer, planned, {flops, flops, flops});
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

// Its cell is a part of each step, and cannot be called alone.
void lstm(benchmark::State& state, const Shape& input, std::int64_t hidden) {
  Lstm layer(input[2], hidden);
  layer.set_precision(precision());
  measure_products(state, layer, input);
}

// The gradient of the input makes the scores again; that of the weights are two products.
void attention(benchmark::State& state, const Shape& input, std::int64_t heads) {
  CausalSelfAttention layer({.features = input[2], .heads = heads});
  layer.set_precision(precision());
  PlannedLayer planned(layer, input);
  const LayerPlan& plan = planned.plan();
  const double weights = 2.0 * static_cast<double>(input.elements() * 4 * input[2]);
  measure<MatrixProduct>(state, layer, planned, {plan.forward_flops, plan.backward_flops - weights, weights});
}

double bytes_of(const Shape& shape) { return sizeof(float) * static_cast<double>(shape.elements()); }

// How often the parts of a layer move an array of the input's size.
void measure_passes(benchmark::State& state, Layer& layer, const Shape& input, const Work& arrays) {
  layer.set_row_kernels(row_kernels());
  PlannedLayer planned(layer, input);
  const double array = bytes_of(input);
  measure<Copy>(state, layer, planned, {arrays.forward * array, arrays.dx * array, arrays.dw * array});
}

// The forward reads its input twice, for the statistics and then for the output; the backward does the same
// with two arrays. The weight gradient is done by then.
void batch_norm_relu(benchmark::State& state, const Shape& input) {
  BatchNorm2d layer(input[3], {.activation = Activation::kRelu});
  measure_passes(state, layer, input, {.forward = 3, .dx = 5});
}

// A row is read from memory once.
void layer_norm(benchmark::State& state, const Shape& input) {
  LayerNorm layer(input.last());
  measure_passes(state, layer, input, {.forward = 2, .dx = 3, .dw = 2});
}

template <typename L>
LayerPtr make() {
  return std::make_unique<L>();
}

void activation(benchmark::State& state, const Shape& input, LayerPtr (*make_layer)()) {
  measure_passes(state, *make_layer(), input, {.forward = 2, .dx = 3});
}

void gelu(benchmark::State& state, const Shape& input, GeluForm form) {
  GELU layer(form);
  measure_passes(state, layer, input, {.forward = 2, .dx = 3});
}

void dropout(benchmark::State& state, const Shape& input) {
  Dropout layer(0.1);
  measure_passes(state, layer, input, {.forward = 2, .dx = 2});
}

// A quarter of the values goes on; max pooling also writes and reads which.
void pool(benchmark::State& state, const Shape& input, LayerPtr (*make_layer)(), double passes) {
  measure_passes(state, *make_layer(), input, {.forward = passes, .dx = passes});
}

void global_avg_pool(benchmark::State& state, const Shape& input) {
  GlobalAvgPool layer;
  const double passes = 1 + 1.0 / static_cast<double>(input[1] * input[2]);
  measure_passes(state, layer, input, {.forward = passes, .dx = passes});
}

void flatten(benchmark::State& state, const Shape& input) {
  Flatten layer;
  measure_passes(state, layer, input, {.forward = 2, .dx = 2});
}

void last_step(benchmark::State& state, const Shape& input) {
  LastStep layer;
  const double step = 1.0 / static_cast<double>(input[1]);
  measure_passes(state, layer, input, {.forward = 2 * step, .dx = 1 + step});
}

// The weight gradient writes the whole table.
void embedding(benchmark::State& state, const Shape& tokens, std::int64_t vocabulary, std::int64_t features) {
  Embedding layer({.vocabulary = vocabulary, .features = features});
  PlannedLayer planned(layer, tokens);
  planned.use_tokens(vocabulary);
  const double vectors = bytes_of(planned.plan().output);
  measure<Copy>(state, layer, planned,
                {.forward = bytes_of(tokens) + 2 * vectors,
                 .dw = bytes_of(tokens) + vectors + bytes_of({vocabulary, features})});
}

// In a model it is done in place, and the gradient goes through it untouched.
void position_embedding(benchmark::State& state, const Shape& input) {
  PositionEmbedding layer({.positions = input[1], .features = input[2]});
  const double table = 1.0 / static_cast<double>(input[0]);
  measure_passes(state, layer, input, {.forward = 2 + table, .dw = 1 + table});
}

// Around branches that do nothing: the sum with its ReLU, then the gradient behind that and the sum of both.
void residual(benchmark::State& state, const Shape& input) {
  Residual layer(std::move(empty_stages(1).front()));
  measure_passes(state, layer, input, {.forward = 3, .dx = 3 + 3});
}

// Each of two branches is copied, both ways, and their gradients are added up.
void concat(benchmark::State& state, const Shape& input) {
  Concat layer(empty_stages(2));
  measure_passes(state, layer, input, {.forward = 4, .dx = 4 + 3});
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
  Measurement<Copy> both(stream, ceiling, "both", 2 * bytes_of(shape));
  for ([[maybe_unused]] auto _ : state) state.SetIterationTime(both.run([&] { loss.run(context); }));
  both.report(state);
  state.SetLabel(std::string("loss and gradient, ") + Copy::kRate);
}

// NOLINTBEGIN(cert-err58-cpp): the library registers benchmarks so.
#define PIPEOPTIM_LAYER(...) \
  BENCHMARK_CAPTURE(__VA_ARGS__)->UseManualTime()->Iterations(20)->Unit(benchmark::kMillisecond)
PIPEOPTIM_LAYER(conv2d, 28x28x1, Shape{128, 28, 28, 1}, 16, 1);
PIPEOPTIM_LAYER(conv2d, 14x14x16, Shape{128, 14, 14, 16}, 32, 2);
PIPEOPTIM_LAYER(conv2d, 32x32x16, Shape{128, 32, 32, 16}, 16, 1);
PIPEOPTIM_LAYER(conv2d, 16x16x32, Shape{128, 16, 16, 32}, 32, 1);
PIPEOPTIM_LAYER(conv2d, 8x8x64, Shape{128, 8, 8, 64}, 64, 1);
PIPEOPTIM_LAYER(conv2d, 32x32x64, Shape{128, 32, 32, 64}, 64, 1);
PIPEOPTIM_LAYER(conv2d, 16x16x128, Shape{128, 16, 16, 128}, 128, 1);
PIPEOPTIM_LAYER(conv2d, 8x8x256, Shape{128, 8, 8, 256}, 256, 1);
PIPEOPTIM_LAYER(conv2d, 4x4x512, Shape{128, 4, 4, 512}, 512, 1);
PIPEOPTIM_LAYER(linear, 1024, 1024, 1024);
PIPEOPTIM_LAYER(lstm, 512x64, Shape{32, 64, 512}, 512);
PIPEOPTIM_LAYER(attention, 256x128, Shape{16, 128, 256}, 8);
PIPEOPTIM_LAYER(batch_norm_relu, 32x32x16, Shape{128, 32, 32, 16});
PIPEOPTIM_LAYER(batch_norm_relu, 4x4x512, Shape{128, 4, 4, 512});
PIPEOPTIM_LAYER(layer_norm, 256x128, Shape{16, 128, 256});
PIPEOPTIM_LAYER(gelu, erf, Shape{16, 128, 1024}, GeluForm::kErf);
PIPEOPTIM_LAYER(gelu, tanh, Shape{16, 128, 1024}, GeluForm::kTanh);
PIPEOPTIM_LAYER(activation, relu, Shape{16, 128, 1024}, make<ReLU>);
PIPEOPTIM_LAYER(activation, tanh, Shape{16, 128, 1024}, make<Tanh>);
PIPEOPTIM_LAYER(activation, sigmoid, Shape{16, 128, 1024}, make<Sigmoid>);
PIPEOPTIM_LAYER(dropout, 1024x128, Shape{16, 128, 1024});
PIPEOPTIM_LAYER(embedding, 20000x512, Shape{32, 64}, 20000, 512);
PIPEOPTIM_LAYER(embedding, 65x256, Shape{16, 128}, 65, 256);
PIPEOPTIM_LAYER(position_embedding, 256x128, Shape{16, 128, 256});
PIPEOPTIM_LAYER(pool, max, Shape{128, 32, 32, 64}, make<MaxPool2d>, 1.5);
PIPEOPTIM_LAYER(pool, average, Shape{128, 32, 32, 64}, make<AvgPool2d>, 1.25);
PIPEOPTIM_LAYER(global_avg_pool, 8x8x64, Shape{128, 8, 8, 64});
PIPEOPTIM_LAYER(flatten, 8x8x64, Shape{128, 8, 8, 64});
PIPEOPTIM_LAYER(last_step, 512x64, Shape{32, 64, 512});
PIPEOPTIM_LAYER(residual, 32x32x16, Shape{128, 32, 32, 16});
PIPEOPTIM_LAYER(concat, 32x32x16, Shape{128, 32, 32, 16});
PIPEOPTIM_LAYER(softmax_cross_entropy, 4096x1000, 4096, 1000);
PIPEOPTIM_LAYER(softmax_cross_entropy, 2048x65, 2048, 65);
// NOLINTEND(cert-err58-cpp)

}  // namespace

int main(int argc, char** argv) { return run(argc, argv); }
