#include "pipeline/simulation.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <stdexcept>
#include <string>

namespace pipeoptim {
namespace {

constexpr double kNotYet = std::numeric_limits<double>::infinity();

class Simulator {
 public:
  Simulator(const Turns& turns, std::span<const StageCosts> costs, std::span<const LinkCosts> links)
      : turns_(turns), costs_(costs), links_(links), next_(turns.size(), 0), worker_of_(costs.size(), 0) {
    if (!costs.empty() && links.size() + 1 != costs.size()) {
      throw std::invalid_argument("the simulation needs the costs of " + std::to_string(costs.size() - 1) +
                                  " links, got " + std::to_string(links.size()));
    }
    std::int32_t count = 0;
    for (std::size_t d = 0; d < turns.size(); ++d) {
      for (const Turn& turn : turns[d]) {
        if (turn.stage < 0 || static_cast<std::size_t>(turn.stage) >= costs.size()) {
          throw std::invalid_argument("the simulation has no costs for stage " + std::to_string(turn.stage));
        }
        worker_of_[static_cast<std::size_t>(turn.stage)] = d;
        count = std::max(count, turn.microbatch + 1);
      }
    }
    count_ = static_cast<std::size_t>(count);
    // When the input of a forward and the gradient of a backward are there, by stage and micro-batch.
    input_.assign(costs.size() * count_, kNotYet);
    gradient_.assign(costs.size() * count_, kNotYet);
    std::fill_n(input_.begin(), count_, 0.0);
    activation_link_.assign(costs.size(), 0.0);
    gradient_link_.assign(costs.size(), 0.0);
    result_.workers.resize(turns.size());
    in_flight_.assign(turns.size(), 0);
  }

  Simulation run() {
    std::deque<std::size_t> candidates;  // workers whose next turn may have become possible
    for (std::size_t d = 0; d < turns_.size(); ++d) candidates.push_back(d);
    while (!candidates.empty()) {
      const std::size_t d = candidates.front();
      candidates.pop_front();
      while (next_[d] < turns_[d].size()) {
        const Turn& turn = turns_[d][next_[d]];
        const double ready = ready_at(turn);
        if (ready == kNotYet) break;
        if (const std::int32_t neighbour = finish(d, turn, ready); neighbour >= 0) {
          candidates.push_back(worker_of_[static_cast<std::size_t>(neighbour)]);
        }
        ++next_[d];
      }
    }
    for (std::size_t d = 0; d < turns_.size(); ++d) {
      if (next_[d] < turns_[d].size()) {
        const Turn& turn = turns_[d][next_[d]];
        throw std::logic_error("the simulated schedule deadlocks: worker " + std::to_string(d) +
                               " waits for micro-batch " + std::to_string(turn.microbatch) + " on stage " +
                               std::to_string(turn.stage));
      }
      result_.makespan = std::max(result_.makespan, result_.workers[d].end);
    }
    return std::move(result_);
  }

 private:
  std::size_t at(std::int32_t stage, std::int32_t microbatch) const {
    return static_cast<std::size_t>(stage) * count_ + static_cast<std::size_t>(microbatch);
  }
  double ready_at(const Turn& turn) const {
    if (turn.op == Op::kForward) return input_[at(turn.stage, turn.microbatch)];
    if (makes_input_gradient(turn.op)) return gradient_[at(turn.stage, turn.microbatch)];
    return 0;  // what they read was made on this worker
  }
  double cost(const Turn& turn) const {
    const StageCosts& stage = costs_[static_cast<std::size_t>(turn.stage)];
    switch (turn.op) {
      case Op::kForward:
        return stage.forward;
      case Op::kBackward:
        return stage.backward_input + stage.backward_weights;
      case Op::kBackwardInput:
        return stage.backward_input;
      case Op::kBackwardWeights:
        return stage.backward_weights;
      default:
        return stage.update;
    }
  }

  // Runs the turn; returns the stage that it sends to, or -1.
  std::int32_t finish(std::size_t d, const Turn& turn, double ready) {
    SimulatedWorker& worker = result_.workers[d];
    const double begin = std::max(ready, worker.end);
    if (next_[d] == 0) worker.begin = begin;
    worker.end = begin + cost(turn);
    worker.busy += cost(turn);
    if (turn.op == Op::kForward) worker.activations = std::max(worker.activations, ++in_flight_[d]);
    if (turn.op == Op::kBackward || turn.op == Op::kBackwardWeights) --in_flight_[d];
    return send(turn, worker.end);
  }

  std::int32_t send(const Turn& turn, double end) {
    const std::int32_t k = turn.stage;
    const bool last = static_cast<std::size_t>(k) + 1 == costs_.size();
    if (turn.op == Op::kForward) {
      if (last) {
        gradient_[at(k, turn.microbatch)] = end;  // from the loss
        return k;
      }
      const auto link = static_cast<std::size_t>(k);
      input_[at(k + 1, turn.microbatch)] = pass(activation_link_[link], end, links_[link].activation);
      return k + 1;
    }
    if (!makes_input_gradient(turn.op) || k == 0) return -1;
    const auto link = static_cast<std::size_t>(k) - 1;
    gradient_[at(k - 1, turn.microbatch)] = pass(gradient_link_[link], end, links_[link].gradient);
    return k - 1;
  }

  static double pass(double& link_free, double end, double cost) {
    return link_free = std::max(link_free, end) + cost;
  }

  const Turns& turns_;
  std::span<const StageCosts> costs_;
  std::span<const LinkCosts> links_;
  std::vector<std::size_t> next_;
  std::vector<std::size_t> worker_of_;  // by stage
  std::size_t count_ = 0;
  std::vector<double> input_, gradient_;
  std::vector<double> activation_link_, gradient_link_;  // when each is free
  std::vector<std::int32_t> in_flight_;                  // by worker
  Simulation result_;
};

}  // namespace

double Simulation::bubble() const {
  double in_use = 0, busy = 0;
  for (const SimulatedWorker& worker : workers) {
    in_use = std::max(in_use, worker.end - worker.begin);
    busy = std::max(busy, worker.busy);
  }
  return in_use - busy;
}

Turns turns_of(const Schedule& schedule) {
  Turns turns(static_cast<std::size_t>(schedule.worker_count()));
  std::vector<std::size_t> next(schedule.stages.size(), 0);
  // The stage's next forward or backward, and the updates behind it.
  const auto take = [&](std::vector<Turn>& list, std::int32_t k) {
    const Program& program = schedule.stages[static_cast<std::size_t>(k)];
    std::size_t& index = next[static_cast<std::size_t>(k)];
    for (bool taken = false; index < program.size(); ++index) {
      const Instruction& i = program[index];
      if (taken && is_compute(i.op)) return;
      taken = taken || is_compute(i.op);
      if (is_compute(i.op) || is_update(i.op)) {
        list.push_back({is_update(i.op) ? Op::kUpdate : i.op, k, i.microbatch});
      }
    }
  };
  for (std::size_t d = 0; d < turns.size(); ++d) {
    if (schedule.turns.empty()) {
      const auto k = static_cast<std::int32_t>(d);
      while (next[d] < schedule.stages[d].size()) take(turns[d], k);
    } else {
      for (const std::int32_t k : schedule.turns[d]) take(turns[d], k);
    }
  }
  return turns;
}

Simulation simulate(const Turns& turns, std::span<const StageCosts> costs, std::span<const LinkCosts> links) {
  return Simulator(turns, costs, links).run();
}

}  // namespace pipeoptim
