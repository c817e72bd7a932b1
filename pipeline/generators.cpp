#include "pipeline/generators.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/runtime/names.h"

namespace pipeoptim {
namespace {

enum class Order { kSequential, kGpipe, kOneForwardOneBackward, kAsynchronous };
enum class Policy { kLive, kSameVersion, kDoubleBuffered, kSpecTrain, kPipeOptim };

struct Method {
  const char* name;
  Order order;
  Policy policy;
};

// A method is an order of compute and a policy for its weights; nothing else.
constexpr std::array kMethods = {
    Method{"sequential", Order::kSequential, Policy::kLive},
    Method{"gpipe", Order::kGpipe, Policy::kLive},
    Method{"1f1b", Order::kOneForwardOneBackward, Policy::kLive},
    Method{"naive", Order::kAsynchronous, Policy::kLive},
    Method{"pipedream", Order::kAsynchronous, Policy::kSameVersion},
    Method{"pipedream-2bw", Order::kAsynchronous, Policy::kDoubleBuffered},
    Method{"spectrain", Order::kAsynchronous, Policy::kSpecTrain},
    Method{"pipeoptim", Order::kAsynchronous, Policy::kPipeOptim},
};

const Method& find_method(const std::string& name) {
  for (const Method& method : kMethods) {
    if (name == method.name) return method;
  }
  throw std::invalid_argument("unknown method '" + name + "'; did you mean '" +
                              nearest_name(name, method_names()) + "'?");
}

std::int32_t divide_up(std::int32_t a, std::int32_t b) { return (a + b - 1) / b; }

// One stage's program under construction.
class Writer {
 public:
  Writer(Program& program, std::int32_t per_update) : program_(program), per_update_(per_update) {}

  void forward(std::int32_t j) { append(Op::kForward, j); }
  // The update follows the backward of a mini-batch's last micro-batch.
  void backward(std::int32_t j) {
    append(Op::kBackward, j);
    if ((j + 1) % per_update_ == 0) append(Op::kUpdate, j);
  }

 private:
  void append(Op op, std::int32_t j) {
    Instruction instruction;
    instruction.op = op;
    instruction.microbatch = j;
    instruction.minibatch = j / per_update_;
    program_.push_back(instruction);
  }
  Program& program_;
  std::int32_t per_update_;
};

// `count` micro-batches from `first` on, with `warm_up` forwards before the first backward.
void one_forward_one_backward(Writer& writer, std::int32_t first, std::int32_t count, std::int32_t warm_up) {
  warm_up = std::min(warm_up, count);
  for (std::int32_t j = 0; j < warm_up; ++j) writer.forward(first + j);
  for (std::int32_t j = warm_up; j < count; ++j) {
    writer.forward(first + j);
    writer.backward(first + j - warm_up);
  }
  for (std::int32_t j = count - warm_up; j < count; ++j) writer.backward(first + j);
}

void write_program(Program& program, Order order, const ScheduleRequest& request, std::int32_t warm_up) {
  const std::int32_t m = request.microbatches_per_update;
  const std::int32_t all = request.minibatches * m;
  Writer writer(program, m);
  switch (order) {
    case Order::kSequential:
      return one_forward_one_backward(writer, 0, all, 0);
    case Order::kGpipe:
      for (std::int32_t first = 0; first < all; first += m) one_forward_one_backward(writer, first, m, m);
      return;
    case Order::kOneForwardOneBackward:
      for (std::int32_t first = 0; first < all; first += m)
        one_forward_one_backward(writer, first, m, warm_up);
      return;
    case Order::kAsynchronous:
      return one_forward_one_backward(writer, 0, all, warm_up);
  }
}

// Live versions: what the stage's weights are when the instruction runs, counted from the program itself.
void note_live_versions(Program& program) {
  std::int32_t version = 0;
  for (Instruction& instruction : program) {
    if (instruction.op == Op::kUpdate) ++version;
    instruction.version = version;
  }
}

void set_prediction(Instruction& instruction, std::int32_t horizon) {
  instruction.horizon = horizon;
  instruction.source = horizon > 0 ? WeightSource::kPredicted : WeightSource::kLive;
}

struct StageNumbers {
  std::int32_t stage, warm_up, depth, per_update;
};

// Constant distances are in micro-batches; with m of them to an update they become ceil(distance / m)
// updates.
std::int32_t pipeoptim_horizon(HorizonPolicy policy, const StageNumbers& at, std::int32_t gap) {
  switch (policy) {
    case HorizonPolicy::kExact:
      return gap;
    case HorizonPolicy::kPaper:
      return divide_up(at.warm_up, at.per_update);
    case HorizonPolicy::kReleasedCode:
      return divide_up(at.depth - at.stage, at.per_update);
  }
  throw std::logic_error("unknown horizon policy");
}

// Annotates F and B with what the method multiplies by. A version older than the live one is left for the
// version pass to provide.
void apply_policy(Program& program, Policy policy, HorizonPolicy horizon, const StageNumbers& at) {
  std::vector<std::int32_t> forward_version, backward_version;  // live versions, by micro-batch
  for (const Instruction& i : program) {
    auto& versions = i.op == Op::kForward ? forward_version : backward_version;
    if (i.op == Op::kUpdate) continue;
    versions.resize(std::max<std::size_t>(versions.size(), static_cast<std::size_t>(i.microbatch) + 1));
    versions[static_cast<std::size_t>(i.microbatch)] = i.version;
  }
  for (Instruction& i : program) {
    if (i.op == Op::kUpdate) continue;
    const auto j = static_cast<std::size_t>(i.microbatch);
    const bool forward = i.op == Op::kForward;
    switch (policy) {
      case Policy::kLive:
        break;
      case Policy::kSameVersion:
        i.version = forward_version[j];
        break;
      case Policy::kDoubleBuffered:
        i.version = std::max(i.minibatch - 1, 0);
        break;
      case Policy::kSpecTrain:
        set_prediction(i, divide_up(at.stage / 2 + (forward ? at.warm_up : 0), at.per_update));
        break;
      case Policy::kPipeOptim:
        if (forward)
          set_prediction(i, pipeoptim_horizon(horizon, at, backward_version[j] - forward_version[j]));
        break;
    }
  }
}

}  // namespace

const std::vector<std::string>& method_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const Method& method : kMethods) list.emplace_back(method.name);
    return list;
  }();
  return names;
}

Schedule generate_compute(const std::string& name, const ScheduleRequest& request) {
  const Method& method = find_method(name);
  const auto require = [](bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
  };
  require(request.stages >= 1, "stages must be at least 1, got " + std::to_string(request.stages));
  require(request.minibatches >= 1,
          "mini-batches must be at least 1, got " + std::to_string(request.minibatches));
  require(request.microbatches_per_update >= 1,
          "micro-batches must be at least 1, got " + std::to_string(request.microbatches_per_update));
  require(
      request.microbatches_per_update <= std::numeric_limits<std::int32_t>::max() / request.minibatches - 1,
      std::to_string(request.minibatches) + " mini-batches of " +
          std::to_string(request.microbatches_per_update) + " micro-batches are too many for one schedule");
  require(method.policy != Policy::kDoubleBuffered || request.microbatches_per_update >= request.stages - 1,
          name + " needs at least D-1 = " + std::to_string(request.stages - 1) +
              " micro-batches per mini-batch, got " + std::to_string(request.microbatches_per_update));

  Schedule schedule;
  schedule.stages.resize(static_cast<std::size_t>(request.stages));
  schedule.microbatches = request.minibatches * request.microbatches_per_update;
  schedule.microbatches_per_update = request.microbatches_per_update;
  for (std::int32_t k = 0; k < request.stages; ++k) {
    const StageNumbers numbers{k, request.stages - 1 - k, request.stages, request.microbatches_per_update};
    Program& program = schedule.stages[static_cast<std::size_t>(k)];
    write_program(program, method.order, request, numbers.warm_up);
    note_live_versions(program);
    apply_policy(program, method.policy, request.horizon, numbers);
  }
  return schedule;
}

}  // namespace pipeoptim
