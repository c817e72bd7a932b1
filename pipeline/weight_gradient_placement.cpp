// ZB-auto: weight gradients go where a worker would wait, within a limit of activations.
#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "pipeline/orders.h"
#include "pipeline/passes.h"
#include "pipeline/simulation.h"

namespace pipeoptim {
namespace {

// List scheduling: whenever a worker is free it takes the first of its priorities that can run now; a weight
// gradient can always wait.
class Greedy {
 public:
  Greedy(const OrderRequest& request, std::int32_t limit, bool forward_first)
      : request_(request),
        limit_(limit),
        forward_first_(forward_first),
        workers_(static_cast<std::size_t>(request.workers)),
        turns_(static_cast<std::size_t>(request.workers)) {
    const auto count = static_cast<std::size_t>(request.count);
    for (Worker& worker : workers_) {
      worker.input.assign(count, kNotYet);
      worker.gradient.assign(count, kNotYet);
    }
    workers_[0].input.assign(count, 0.0);
  }

  Turns run() {
    // The times at which something may have become possible.
    std::priority_queue<double, std::vector<double>, std::greater<>> events;
    events.push(0);
    while (!events.empty()) {
      const double now = events.top();
      while (!events.empty() && events.top() == now) events.pop();
      for (std::int32_t k = 0; k < request_.workers; ++k) {
        const auto index = static_cast<std::size_t>(k);
        if (workers_[index].free_at > now) continue;
        if (const std::optional<Op> op = choose(workers_[index], now)) {
          run_turn(k, *op, now);
          events.push(workers_[index].free_at);
        }
      }
    }
    return std::move(turns_);
  }

 private:
  static constexpr double kNotYet = 1e300;
  struct Worker {
    std::vector<double> input, gradient;  // when a micro-batch's forward and backward can start
    std::int32_t forwards = 0, inputs = 0, weights = 0;
    double free_at = 0;
  };

  std::optional<Op> choose(const Worker& worker, double now) const {
    const auto can = [&](std::int32_t next, const std::vector<double>& ready) {
      return next < request_.count && ready[static_cast<std::size_t>(next)] <= now;
    };
    const bool forward = can(worker.forwards, worker.input) && worker.forwards - worker.weights < limit_;
    const bool backward = can(worker.inputs, worker.gradient);
    if (forward && (forward_first_ || !backward)) return Op::kForward;
    if (backward) return Op::kBackwardInput;
    if (worker.weights < worker.inputs) return Op::kBackwardWeights;
    return std::nullopt;
  }

  void run_turn(std::int32_t k, Op op, double now) {
    const auto index = static_cast<std::size_t>(k);
    Worker& worker = workers_[index];
    const ComputeCosts& costs = request_.costs;
    if (op == Op::kForward) {
      worker.free_at = now + costs.forward;
      const auto j = static_cast<std::size_t>(worker.forwards++);
      if (index + 1 < workers_.size()) {
        workers_[index + 1].input[j] = worker.free_at;
      } else {
        worker.gradient[j] = worker.free_at;
      }
      turns_[index].push_back({op, k, static_cast<std::int32_t>(j)});
    } else if (op == Op::kBackwardInput) {
      worker.free_at = now + costs.backward_input;
      const auto j = static_cast<std::size_t>(worker.inputs++);
      if (index > 0) workers_[index - 1].gradient[j] = worker.free_at;
      turns_[index].push_back({op, k, static_cast<std::int32_t>(j)});
    } else {
      worker.free_at = now + costs.backward_weights;
      turns_[index].push_back({op, k, worker.weights++});
    }
  }

  const OrderRequest& request_;
  std::int32_t limit_;
  bool forward_first_;
  std::vector<Worker> workers_;
  Turns turns_;
};

// 1F1B with each weight gradient behind its input gradient, held back to the limit: what always runs.
Turns split_1f1b(const OrderRequest& request, std::int32_t limit) {
  Turns turns(static_cast<std::size_t>(request.workers));
  for (std::int32_t k = 0; k < request.workers; ++k) {
    std::vector<Turn>& list = turns[static_cast<std::size_t>(k)];
    const std::int32_t warm_up = std::min({request.workers - 1 - k, limit - 1, request.count});
    for (std::int32_t j = 0; j < warm_up; ++j) list.push_back({Op::kForward, k, j});
    for (std::int32_t j = 0; j < request.count; ++j) {
      if (warm_up + j < request.count) list.push_back({Op::kForward, k, warm_up + j});
      list.push_back({Op::kBackwardInput, k, j});
      list.push_back({Op::kBackwardWeights, k, j});
    }
  }
  return turns;
}

// A worker that is far ahead may wait for ever where an edge holds one tensor.
bool runs_with_short_edges(const Turns& turns) {
  Schedule schedule;
  for (std::size_t k = 0; k < turns.size(); ++k) {
    Program program;
    for (const Turn& turn : turns[k]) {
      Instruction instruction;
      instruction.op = turn.op;
      instruction.microbatch = turn.microbatch;
      program.push_back(instruction);
    }
    insert_transfers(program, static_cast<std::int32_t>(k), static_cast<std::int32_t>(turns.size()));
    schedule.stages.push_back(std::move(program));
  }
  return runs_to_its_end(schedule, 1);
}

}  // namespace

Turns place_weight_gradients(const OrderRequest& request) {
  const std::int32_t limit =
      request.activation_limit == 0 ? 2 * request.workers - 1 : request.activation_limit;
  const ComputeCosts& costs = request.costs;
  const std::vector<StageCosts> stages(static_cast<std::size_t>(request.workers),
                                       {costs.forward, costs.backward_input, costs.backward_weights, 0});
  const std::vector<LinkCosts> links(stages.size() - 1);
  Turns best;
  double least_bubble = 0;
  std::int32_t least_activations = 0;
  std::array candidates = {split_1f1b(request, limit), Greedy(request, limit, false).run(),
                           Greedy(request, limit, true).run(),
                           zero_bubble_turns(request.workers, request.count, 1),
                           zero_bubble_turns(request.workers, request.count, 2)};
  for (Turns& turns : candidates) {
    const Simulation simulation = simulate(turns, stages, links);
    const double bubble = simulation.bubble();
    std::int32_t activations = 0;
    for (const SimulatedWorker& worker : simulation.workers) {
      activations = std::max(activations, worker.activations);
    }
    const bool better =
        best.empty() || bubble < least_bubble || (bubble == least_bubble && activations < least_activations);
    if (activations > limit || !better || !runs_with_short_edges(turns)) continue;
    best = std::move(turns);
    least_bubble = bubble;
    least_activations = activations;
  }
  return best;
}

}  // namespace pipeoptim
