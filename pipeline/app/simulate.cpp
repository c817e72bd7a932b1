// `pipeoptim simulate`: what a schedule costs, without running it.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "pipeline/app/app.h"
#include "pipeline/app/trace_costs.h"
#include "pipeline/generators.h"
#include "pipeline/methods.h"
#include "pipeline/passes.h"
#include "pipeline/simulation.h"

namespace pipeoptim::app {
namespace {

struct Case {
  ScheduleRequest request;
  std::vector<StageCosts> costs;
  std::vector<LinkCosts> links;
  std::optional<TraceCosts> measured;
};

// The same costs for every stage; a chunk of v stages on a worker costs its v-th part.
Case from_options(const Options& options) {
  Case c;
  c.request = schedule_request(options);
  const int stages = model_stages(options);
  const double share = static_cast<double>(options.stages) / stages;
  c.costs.assign(static_cast<std::size_t>(stages), {options.costs[0] * share, options.costs[1] * share,
                                                    options.costs[2] * share, options.update_cost * share});
  c.links.assign(static_cast<std::size_t>(stages) - 1, {options.links[0], options.links[1]});
  c.request.minibatches = static_cast<int>(options.mini_batches);
  return c;
}

Case from_trace(const Options& options) {
  Case c;
  c.request = schedule_request(options);
  c.measured = read_trace_costs(options.costs_from);
  c.costs = c.measured->stages;
  c.links = c.measured->links;
  const auto stages = static_cast<std::size_t>(model_stages(options));
  if (c.costs.size() != stages) {
    throw DataError(fmt::format("{} holds {} stages, but --stages and --chunks ask for {}",
                                options.costs_from, c.costs.size(), stages));
  }
  c.request.minibatches = static_cast<int>(c.measured->minibatches);
  if (c.measured->microbatches != c.measured->minibatches * options.micro_batches) {
    throw DataError(fmt::format("{} holds {} micro-batches in {} mini-batches; --micro-batches says {}",
                                options.costs_from, c.measured->microbatches, c.measured->minibatches,
                                options.micro_batches));
  }
  if (!c.measured->split) {  // the halves of a backward are not known
    if (!splits_backward(find_method(options.method).order)) return c;
    throw DataError(options.costs_from + " has whole backwards, but " + options.method +
                    " runs their halves apart; trace a run of one of the zb methods");
  }
  ComputeCosts& mean = c.request.costs = {0, 0, 0};
  for (const StageCosts& stage : c.costs) {
    mean.forward += stage.forward / static_cast<double>(stages);
    mean.backward_input += stage.backward_input / static_cast<double>(stages);
    mean.backward_weights += stage.backward_weights / static_cast<double>(stages);
  }
  return c;
}

// The extra copies of weights that the schedule keeps, by stage.
std::vector<int> weight_versions(const Schedule& schedule) {
  std::vector<int> versions;
  for (Program program : schedule.stages) {
    const int stashed = materialise_versions(program);
    versions.push_back(1 + stashed + insert_predictions(program));
  }
  return versions;
}

struct Row {
  int worker;
  double idle;  // part of the makespan
  int activations, versions;
};

std::vector<Row> rows_of(const Schedule& schedule, const Simulation& simulation) {
  const std::vector<int> versions = weight_versions(schedule);
  std::vector<Row> rows;
  for (std::size_t d = 0; d < simulation.workers.size(); ++d) {
    const SimulatedWorker& worker = simulation.workers[d];
    rows.push_back({static_cast<int>(d), 1 - worker.busy / simulation.makespan, worker.activations, 0});
  }
  for (std::size_t k = 0; k < versions.size(); ++k) {
    int& most = rows[static_cast<std::size_t>(schedule.worker_of(static_cast<int>(k)))].versions;
    most = std::max(most, versions[k]);
  }
  return rows;
}

void print_text(const Options& options, const Case& c, const Schedule& schedule,
                const Simulation& simulation) {
  const std::vector<Row> rows = rows_of(schedule, simulation);
  fmt::print("{}: {} workers, {} stages, {} mini-batches of {} micro-batches\n", options.method, rows.size(),
             schedule.depth(), c.request.minibatches, options.micro_batches);
  double most_busy = 0;
  for (const SimulatedWorker& worker : simulation.workers) most_busy = std::max(most_busy, worker.busy);
  fmt::print("time {:.6g}, of which the busiest worker works {:.6g}; bubble {:.6g} ({:.2f} %)\n",
             simulation.makespan, most_busy, simulation.bubble(),
             100 * simulation.bubble() / simulation.makespan);
  fmt::print("{:.6g} mini-batches a time unit\n", c.request.minibatches / simulation.makespan);
  if (c.measured) {
    fmt::print("measured: {:.6g} (simulated {:+.1f} %)\n", c.measured->makespan,
               100 * (simulation.makespan / c.measured->makespan - 1));
  }
  fmt::print("\n{:>8}{:>10}{:>24}{:>18}\n", "worker", "idle", "activations in flight", "weight versions");
  const std::size_t shown = rows.size() <= 16 ? rows.size() : 8;
  const auto print = [](const Row& row) {
    fmt::print("{:>8}{:>9.2f}%{:>24}{:>18}\n", row.worker, 100 * row.idle, row.activations, row.versions);
  };
  for (std::size_t d = 0; d < shown; ++d) print(rows[d]);
  if (shown == rows.size()) return;
  fmt::print("{:>8}\n", "...");
  print(rows.back());
}

void print_json(const Case& c, const Schedule& schedule, const Simulation& simulation) {
  nlohmann::ordered_json all = {{"time", simulation.makespan},
                                {"bubble", simulation.bubble()},
                                {"mini_batches_per_time", c.request.minibatches / simulation.makespan},
                                {"workers", nlohmann::ordered_json::array()}};
  if (c.measured) all["measured_time"] = c.measured->makespan;
  for (const Row& row : rows_of(schedule, simulation)) {
    all["workers"].push_back(
        {{"idle", row.idle}, {"activations", row.activations}, {"weight_versions", row.versions}});
  }
  fmt::print("{}\n", all.dump());
}

}  // namespace

ExitCode simulate(const Options& options) {
  const Case c = options.costs_from.empty() ? from_options(options) : from_trace(options);
  const Schedule schedule = generate_compute(options.method, c.request);
  const Simulation simulation = pipeoptim::simulate(turns_of(schedule), c.costs, c.links);
  if (options.json) {
    print_json(c, schedule, simulation);
  } else {
    print_text(options, c, schedule, simulation);
  }
  return kSuccess;
}

}  // namespace pipeoptim::app
