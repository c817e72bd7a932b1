#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/launch.h"
#include "layers/accumulate.h"
#include "layers/concat.h"
#include "layers/tiles.h"

namespace pipeoptim {
namespace {

// Copies `count` channels of every row between a narrow and a wide tensor.
struct CopyChannels {
  const float* from;
  float* to;
  std::int64_t from_channels, to_channels, from_first, to_first, count;
  bool packs = false;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team& team) const {
    const float* in = from + row * from_channels + from_first;
    float* out = to + row * to_channels + to_first;
    for_each_tile(team, count, packs, [&]<int kWidth>(std::int64_t c) PO_INLINED {
      const auto tile = load_tile<kWidth>(in + c);
      Pack<kWidth> copy;
      for (int v = 0; v < kWidth; ++v) copy.value[v] = tile.value[v];
      store_tile(out + c, copy);
    });
  }
};

void copy_channels(Stream& stream, std::int64_t rows, CopyChannels copy) {
  copy.packs = allow_tiles(copy.count, copy.from + copy.from_first, copy.to + copy.to_first) &&
               copy.from_channels % 4 == 0 && copy.to_channels % 4 == 0;
  for_each_row(stream, rows, copy.count, copy);
}

}  // namespace

Concat::Concat(std::vector<std::vector<NamedLayer>> branches) {
  if (branches.empty()) throw std::invalid_argument("concat needs at least one branch");
  Branch next;
  for (auto& layers : branches) {
    std::vector<NamedLayer> named;
    for (NamedLayer& layer : layers) {
      named.push_back({std::to_string(branches_.size()) + "." + layer.name, std::move(layer.layer)});
    }
    next.layers = std::make_unique<Sequence>(std::move(named));
    next.parameters = next.layers->parameters().size();
    next.states = next.layers->states().size();
    Branch after;
    after.first_parameter = next.first_parameter + next.parameters;
    after.first_state = next.first_state + next.states;
    after.random_layer = next.random_layer + static_cast<std::uint64_t>(next.layers->random_layers());
    branches_.push_back(std::move(next));
    next = std::move(after);
  }
}

std::string Concat::describe() const {
  std::string text = "concat [";
  for (const Branch& branch : branches_)
    text += (&branch == branches_.data() ? "" : " | ") + branch.layers->describe();
  return text + "]";
}

std::vector<Parameter> Concat::parameters() const {
  std::vector<Parameter> all;
  for (const Branch& branch : branches_) {
    for (Parameter& parameter : branch.layers->parameters()) all.push_back(std::move(parameter));
  }
  return all;
}

std::vector<State> Concat::states() const {
  std::vector<State> all;
  for (const Branch& branch : branches_) {
    for (State& state : branch.layers->states()) all.push_back(std::move(state));
  }
  return all;
}

int Concat::random_layers() const {
  return static_cast<int>(branches_.back().random_layer) + branches_.back().layers->random_layers();
}

void Concat::set_row_kernels(RowKernels kernels) {
  for (const Branch& branch : branches_) branch.layers->set_row_kernels(kernels);
}

LayerPlan Concat::plan(Device device, int threads, const Shape& input) {
  const bool split = split_ == BackwardSplit::kSplit;
  ArenaPlan stash;
  ArenaPlan workspace;
  LayerPlan plan;
  std::int64_t channels = 0;
  std::size_t branch_workspace = 0;
  bool input_needed = false;
  for (Branch& branch : branches_) {
    branch.layers->set_backward_split(split_);
    branch.layers->set_precision(precision_);
    branch.plan = branch.layers->plan(device, threads, input);
    Shape expected = branches_.front().plan.output;
    expected[expected.rank() - 1] = branch.plan.output.last();
    if (!(branch.plan.output == expected)) {
      throw std::invalid_argument("concat: branch outputs " + branches_.front().plan.output.to_string() +
                                  " and " + branch.plan.output.to_string() +
                                  " differ in more than the channels");
    }
    branch.first_channel = channels;
    channels += branch.plan.output.last();
    branch.stash = stash.reserve(branch.plan.stash_bytes);
    const bool kept = needs_output(branch.plan.needs);
    branch.output = (kept ? stash : workspace).reserve(float_bytes(branch.plan.output.elements()));
    branch.gradient = (split ? stash : workspace).reserve(float_bytes(branch.plan.output.elements()));
    branch_workspace = std::max(branch_workspace, branch.plan.workspace_bytes);
    input_needed = input_needed || needs_input(branch.plan.needs);
    plan.random = plan.random || branch.plan.random;
    plan.forward_flops += branch.plan.forward_flops;
    plan.backward_flops += branch.plan.backward_flops;
    plan.bytes += branch.plan.bytes + 4.0 * static_cast<double>(float_bytes(branch.plan.output.elements()));
  }
  input_gradient_ = workspace.reserve(float_bytes(input.elements()));
  branch_workspace_ = workspace.reserve(branch_workspace);
  plan.output = branches_.front().plan.output;
  plan.output[plan.output.rank() - 1] = channels;
  plan.stash_bytes = stash.bytes();
  plan.workspace_bytes = workspace.bytes();
  plan.needs = input_needed ? Needs::kInput : Needs::kNothing;
  return plan;
}

void Concat::forward(const ForwardContext& context) const {
  const std::int64_t channels = context.output.shape.last();
  const std::int64_t rows = context.output.elements() / channels;
  for (const Branch& branch : branches_) {
    ForwardContext inner = context;
    inner.weights = context.weights.slice(branch.first_parameter, branch.parameters);
    inner.states = context.states.subspan(branch.first_state, branch.states);
    const bool kept = needs_output(branch.plan.needs);
    inner.output = {floats_at(kept ? context.stash : context.workspace, branch.output), branch.plan.output};
    inner.stash = context.stash + branch.stash;
    inner.workspace = context.workspace + branch_workspace_;
    inner.random.layer += branch.random_layer;
    branch.layers->forward(inner);
    const std::int64_t own = branch.plan.output.last();
    copy_channels(context.stream, rows,
                  {inner.output.data, context.output.data, own, channels, 0, branch.first_channel, own});
  }
}

void Concat::run_backward(const BackwardContext& context, Half half) const {
  const std::int64_t channels = context.output_gradient.shape.last();
  const std::int64_t rows = context.output_gradient.elements() / channels;
  const bool first_half = half != Half::kWeights;
  for (const Branch& branch : branches_) {
    const bool first = &branch == branches_.data();
    const std::int64_t own = branch.plan.output.last();
    float* gradient =
        floats_at(split_ == BackwardSplit::kSplit ? context.stash : context.workspace, branch.gradient);
    float* const input_gradient =
        first ? context.input_gradient.data : floats_at(context.workspace, input_gradient_);
    BackwardContext inner = context;
    inner.weights = context.weights.slice(branch.first_parameter, branch.parameters);
    inner.gradients.pointers = context.gradients.pointers.subspan(branch.first_parameter, branch.parameters);
    inner.output =
        ConstTensor(needs_output(branch.plan.needs) ? floats_at(context.stash, branch.output) : nullptr,
                    branch.plan.output);
    inner.output_gradient = ConstTensor(gradient, branch.plan.output);
    inner.input_gradient.data = context.input_gradient.data ? input_gradient : nullptr;
    inner.stash = context.stash + branch.stash;
    inner.workspace = context.workspace + branch_workspace_;
    inner.random.layer += branch.random_layer;
    if (first_half) {
      copy_channels(context.stream, rows,
                    {context.output_gradient.data, gradient, channels, own, branch.first_channel, 0, own});
    }
    if (half == Half::kBoth) branch.layers->backward(inner);
    if (half == Half::kInput) branch.layers->backward_input(inner);
    if (half == Half::kWeights) branch.layers->backward_weights(inner);
    if (first_half && !first && context.input_gradient.data) {
      accumulate(context.stream, context.input_gradient.elements(), input_gradient,
                 context.input_gradient.data);
    }
  }
}

void Concat::backward(const BackwardContext& context) const {
  if (split_ == BackwardSplit::kSplit) return Layer::backward(context);
  run_backward(context, Half::kBoth);
}
void Concat::backward_input(const BackwardContext& context) const { run_backward(context, Half::kInput); }
void Concat::backward_weights(const BackwardContext& context) const { run_backward(context, Half::kWeights); }

}  // namespace pipeoptim
