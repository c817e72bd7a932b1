#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/launch.h"
#include "layers/bias.h"
#include "layers/functions.h"
#include "layers/lstm.h"
#include "layers/provider.h"
#include "layers/tiles.h"

namespace pipeoptim {
namespace lstm {  // named: nvcc takes constants of local bodies that only templates read for unused

// One step of one record: gates from their sums, in place, then cell and output. Rows lie at the step in
// arrays {N, T, .}.
struct Step {
  using LongRows = void;  // a step has few: a block each

  float* gates;
  const float* bias_input;
  const float* bias_hidden;
  float* cells;
  float* output;
  std::int64_t hidden, length, t;
  bool packs;

  template <int kWidth, typename Function>
  PO_HD Pack<kWidth> gate(std::int64_t at, float* row, const Function& function) const {
    const auto sum = load_tile<kWidth>(row + at);
    const auto first = load_tile<kWidth>(bias_input + at), second = load_tile<kWidth>(bias_hidden + at);
    Pack<kWidth> value;
    PO_SIMD
    for (int v = 0; v < kWidth; ++v)
      value.value[v] = function(sum.value[v] + (first.value[v] + second.value[v]));
    store_tile(row + at, value);
    return value;
  }

  struct Sigmoid {
    PO_HD float operator()(float x) const { return sigmoid_of(x); }
  };
  struct Tanh {
    PO_HD float operator()(float x) const { return tanh_of(x); }
  };

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    const std::int64_t row = record * length + t;
    float* const sums = gates + row * 4 * hidden;
    float* const cell = cells + row * hidden;
    float* const h = output + row * hidden;
    for_each_tile(team, hidden, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto in = gate<kWidth>(c, sums, Sigmoid{}), forget = gate<kWidth>(hidden + c, sums, Sigmoid{});
      const auto fresh = gate<kWidth>(2 * hidden + c, sums, Tanh{});
      const auto out = gate<kWidth>(3 * hidden + c, sums, Sigmoid{});
      Pack<kWidth> next{}, result;
      if (t > 0) {
        const auto before = load_tile<kWidth>(cell - hidden + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) next.value[v] = forget.value[v] * before.value[v];
      }
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        next.value[v] += in.value[v] * fresh.value[v];
        result.value[v] = out.value[v] * tanh_of(next.value[v]);
      }
      store_tile(cell + c, next);
      store_tile(h + c, result);
    });
  }
};

// The same step backwards: gradients of the gates' sums, from that of the output and from what step t + 1
// handed back.
struct StepBackward {
  using LongRows = void;

  const float* gates;
  const float* cells;
  const float* output_gradient;
  const float* state_gradient;  // {N, hidden}: of h_t, from step t + 1
  float* cell_gradient;         // {N, hidden}: of c_t likewise; then of c_(t-1)
  float* gate_gradient;
  std::int64_t hidden, length, t;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t record, const Team& team) const {
    const std::int64_t row = record * length + t;
    const bool last = t + 1 == length;
    const float* const gate = gates + row * 4 * hidden;
    const float* const cell = cells + row * hidden;
    float* const to = gate_gradient + row * 4 * hidden;
    // Loads stand where their values are used: all at once would not fit a thread's registers.
    for_each_tile(team, hidden, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto dy = load_tile<kWidth>(output_gradient + row * hidden + c);
      const auto now = load_tile<kWidth>(cell + c), out = load_tile<kWidth>(gate + 3 * hidden + c);
      Pack<kWidth> dh{}, of_cell{}, result;
      if (!last) {
        const auto later_h = load_tile<kWidth>(state_gradient + record * hidden + c);
        const auto later_c = load_tile<kWidth>(cell_gradient + record * hidden + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) {
          dh.value[v] = later_h.value[v];
          of_cell.value[v] = later_c.value[v];
        }
      }
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float o = out.value[v], bent = tanh_of(now.value[v]), gradient = dh.value[v] + dy.value[v];
        of_cell.value[v] = of_cell.value[v] + gradient * o * (1.0F - bent * bent);
        result.value[v] = gradient * bent * o * (1.0F - o);
      }
      store_tile(to + 3 * hidden + c, result);

      const auto in = load_tile<kWidth>(gate + c), fresh = load_tile<kWidth>(gate + 2 * hidden + c);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float i = in.value[v];
        result.value[v] = of_cell.value[v] * fresh.value[v] * i * (1.0F - i);
      }
      store_tile(to + c, result);
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float g = fresh.value[v];
        result.value[v] = of_cell.value[v] * in.value[v] * (1.0F - g * g);
      }
      store_tile(to + 2 * hidden + c, result);

      const auto forget = load_tile<kWidth>(gate + hidden + c);
      Pack<kWidth> before{};
      if (t > 0) {
        const auto earlier = load_tile<kWidth>(cell - hidden + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) before.value[v] = earlier.value[v];
      }
      PO_SIMD
      for (int v = 0; v < kWidth; ++v) {
        const float f = forget.value[v];
        result.value[v] = of_cell.value[v] * before.value[v] * f * (1.0F - f);
        of_cell.value[v] *= f;
      }
      store_tile(to + hidden + c, result);
      store_tile(cell_gradient + record * hidden + c, of_cell);
    });
  }
};

}  // namespace lstm

namespace {

constexpr std::int64_t kStrip = 16;

// Columns of a row-major matrix to rows of its transpose, a strip of columns at a time: whole cache lines
// both ways.
struct Transposed {
  const float* from;
  float* to;
  std::int64_t rows, columns;

  template <typename Team>
  PO_HD void operator()(std::int64_t strip, const Team& team) const {
    const std::int64_t begin = strip * kStrip, end = begin + kStrip < columns ? begin + kStrip : columns;
    for (std::int64_t row = team.rank(); row < rows; row += team.size()) {
      for (std::int64_t c = begin; c < end; ++c) to[c * rows + row] = from[row * columns + c];
    }
  }
};

// The outputs one step earlier: what weight_hh saw at each step.
struct Shift {
  const float* output;
  float* earlier;
  std::int64_t hidden, length;
  bool packs;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const bool first = row % length == 0;
    for_each_tile(team, hidden, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      Pack<kWidth> value{};
      if (!first) {
        const auto before = load_tile<kWidth>(output + (row - 1) * hidden + c);
        PO_SIMD
        for (int v = 0; v < kWidth; ++v) value.value[v] = before.value[v];
      }
      store_tile(earlier + row * hidden + c, value);
    });
  }
};

struct BothBiases {
  const float* sum;
  float* input;
  float* hidden;
  bool adds;
  PO_HD void operator()(std::int64_t i) const {
    input[i] = adds ? input[i] + sum[i] : sum[i];
    hidden[i] = adds ? hidden[i] + sum[i] : sum[i];
  }
};

}  // namespace

Lstm::Lstm(std::int64_t in, std::int64_t hidden) : in_(in), hidden_(hidden) {
  if (in < 1 || hidden < 1)
    throw std::invalid_argument(describe() + ": needs at least one input and one hidden unit");
}

std::string Lstm::describe() const {
  return "lstm " + std::to_string(in_) + " -> " + std::to_string(hidden_);
}

std::vector<Parameter> Lstm::parameters() const {
  const Initializer uniform{Initializer::Kind::kUniform, 1.0F / std::sqrt(static_cast<float>(hidden_))};
  return {
      {.name = "weight_ih_l0", .shape = {4 * hidden_, in_}, .initializer = uniform, .may_be_rounded = true},
      {.name = "weight_hh_l0", .shape = {4 * hidden_, hidden_}, .initializer = uniform},
      {.name = "bias_ih_l0", .shape = {4 * hidden_}, .initializer = uniform, .decay = Decay::kNo},
      {.name = "bias_hh_l0", .shape = {4 * hidden_}, .initializer = uniform, .decay = Decay::kNo}};
}

LayerPlan Lstm::plan(Device device, int threads, const Shape& input) {
  if (input.rank() != 3 || input.last() != in_ || input.elements() < 1) {
    throw std::invalid_argument(describe() + ": the input must be NxTx" + std::to_string(in_) + ", got " +
                                input.to_string());
  }
  records_ = input[0];
  length_ = input[1];
  ArenaPlan stash, workspace;
  gates_ = stash.reserve(float_bytes(rows() * 4 * hidden_));
  cells_ = stash.reserve(float_bytes(rows() * hidden_));
  gate_gradient_ =
      (split_ == BackwardSplit::kSplit ? stash : workspace).reserve(float_bytes(rows() * 4 * hidden_));
  // oneDNN multiplies rows that lie apart with a transposed matrix at a third of its speed (32 x 512 by 512 x
  // 2048, two threads): over several steps a transpose pays.
  transposes_ = device.backend == Backend::kHost && length_ >= 8;
  transposed_ = workspace.reserve(transposes_ ? float_bytes(4 * hidden_ * hidden_) : 0);
  state_gradient_ = workspace.reserve(float_bytes(records_ * hidden_));
  cell_gradient_ = workspace.reserve(float_bytes(records_ * hidden_));
  earlier_ = workspace.reserve(float_bytes(rows() * hidden_));
  sums_ = workspace.reserve(bias_gradient_workspace({rows(), 4 * hidden_}));
  bias_gradient_ = workspace.reserve(float_bytes(4 * hidden_));
  of_input_ =
      make_linear(device, threads, {.rows = rows(), .in = in_, .out = 4 * hidden_, .precision = precision_});
  product_ = workspace.reserve(of_input_->workspace_bytes());

  LayerPlan plan;
  plan.output = {records_, length_, hidden_};
  plan.stash_bytes = stash.bytes();
  plan.workspace_bytes = workspace.bytes();
  plan.needs = Needs::kInputAndOutput;
  const auto all_rows = static_cast<double>(rows());
  plan.forward_flops = 2.0 * all_rows * static_cast<double>(4 * hidden_ * (in_ + hidden_));
  plan.backward_flops = 2 * plan.forward_flops;
  // Each step reads weight_hh again, both ways.
  plan.bytes = sizeof(float) * (all_rows * static_cast<double>(3 * in_ + 30 * hidden_) +
                                static_cast<double>(2 * length_ * 4 * hidden_ * hidden_));
  return plan;
}

void Lstm::forward(const ForwardContext& context) const {
  if (length_ == 0) throw std::logic_error(describe() + ": run before plan()");
  float* const gates = floats_at(context.stash, gates_);
  float* const cells = floats_at(context.stash, cells_);
  float* const output = context.output.data;
  of_input_->forward(context.stream,
                     {.input = context.input.data, .weights = context.weights.factor(0), .output = gates},
                     context.workspace + product_);
  const float *bias_input = context.weights[2], *bias_hidden = context.weights[3];
  const bool packs = allow_tiles(hidden_, gates, bias_input, bias_hidden, cells, output);
  const float* recurrent = context.weights[1];
  if (transposes_) {
    float* const to = floats_at(context.workspace, transposed_);
    for_each_row(context.stream, (hidden_ + kStrip - 1) / kStrip, 4 * hidden_,
                 Transposed{recurrent, to, 4 * hidden_, hidden_});
    recurrent = to;
  }
  for (std::int64_t t = 0; t < length_; ++t) {
    if (t > 0) {
      gemm(context.stream, {.transpose_b = transposes_ ? Transpose::kNo : Transpose::kYes,
                            .rows = records_,
                            .columns = 4 * hidden_,
                            .inner = hidden_,
                            .a = output + (t - 1) * hidden_,
                            .b = recurrent,
                            .c = gates + t * 4 * hidden_,
                            .leading_a = length_ * hidden_,
                            .leading_c = length_ * 4 * hidden_,
                            .beta = 1,
                            .precision = precision_});
    }
    for_each_row(context.stream, records_, hidden_,
                 lstm::Step{gates, bias_input, bias_hidden, cells, output, hidden_, length_, t, packs});
  }
}

float* Lstm::gate_gradient(const BackwardContext& context) const {
  return floats_at(split_ == BackwardSplit::kSplit ? context.stash : context.workspace, gate_gradient_);
}

void Lstm::run_input(const BackwardContext& context) const {
  const float* const gates = floats_at(context.stash, gates_);
  const float* const cells = floats_at(context.stash, cells_);
  const float* const dy = context.output_gradient.data;
  float* const gradient = gate_gradient(context);
  float* const of_state = floats_at(context.workspace, state_gradient_);
  float* const of_cell = floats_at(context.workspace, cell_gradient_);
  const bool packs = allow_tiles(hidden_, gates, cells, dy, gradient, of_state, of_cell);
  for (std::int64_t t = length_ - 1; t >= 0; --t) {
    if (t + 1 < length_) {
      gemm(context.stream, {.rows = records_,
                            .columns = hidden_,
                            .inner = 4 * hidden_,
                            .a = gradient + (t + 1) * 4 * hidden_,
                            .b = context.weights[1],
                            .c = of_state,
                            .leading_a = length_ * 4 * hidden_,
                            .precision = precision_});
    }
    for_each_row(
        context.stream, records_, hidden_,
        lstm::StepBackward{gates, cells, dy, of_state, of_cell, gradient, hidden_, length_, t, packs});
  }
  if (!context.input_gradient.data) return;
  of_input_->backward_input(context.stream,
                            {.weights = context.weights.factor(0),
                             .output_gradient = gradient,
                             .input_gradient = context.input_gradient.data},
                            context.workspace + product_);
}

void Lstm::run_weights(const BackwardContext& context, Workspace holds) const {
  const float* const gradient = gate_gradient(context);
  const bool adds = context.gradients.mode == GradientMode::kAdd;
  of_input_->backward_weights(context.stream,
                              {.input = context.input.data,
                               .output_gradient = gradient,
                               .weight_gradient = context.gradients[0],
                               .mode = context.gradients.mode,
                               .workspace = holds},
                              context.workspace + product_);
  float* const earlier = floats_at(context.workspace, earlier_);
  for_each_row(context.stream, rows(), hidden_,
               Shift{context.output.data, earlier, hidden_, length_,
                     allow_tiles(hidden_, context.output.data, earlier)});
  gemm(context.stream, {.transpose_a = Transpose::kYes,
                        .rows = 4 * hidden_,
                        .columns = hidden_,
                        .inner = rows(),
                        .a = gradient,
                        .b = earlier,
                        .c = context.gradients[1],
                        .beta = adds ? 1.0F : 0.0F,
                        .precision = precision_});
  float* const sum = floats_at(context.workspace, bias_gradient_);
  sum_bias_gradient(context.stream, {rows(), 4 * hidden_}, gradient, sum, GradientMode::kStore,
                    context.workspace + sums_);
  for_each(context.stream, 4 * hidden_, BothBiases{sum, context.gradients[2], context.gradients[3], adds});
}

void Lstm::backward(const BackwardContext& context) const {
  run_input(context);
  run_weights(context, after_input_gradient(context));
}
void Lstm::backward_input(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) throw std::logic_error(describe() + ": joined, call backward()");
  run_input(context);
}
void Lstm::backward_weights(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kJoined) throw std::logic_error(describe() + ": joined, call backward()");
  run_weights(context, Workspace::kUndefined);
}

}  // namespace pipeoptim
