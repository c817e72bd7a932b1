// `pipeoptim plan`: what a training run would need, without training (of running text the file is read: its
// vocabulary).
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "pipeline/app/app.h"
#include "pipeline/app/memory.h"
#include "pipeline/app/records.h"
#include "pipeline/app/setup.h"

namespace pipeoptim::app {
namespace {

std::string counted(std::int64_t count, const std::string& what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

void print_layers(const std::vector<StageInfo>& stages) {
  std::size_t name = 0, description = 0, output = 0;
  for (const StageInfo& stage : stages) {
    for (const LayerInfo& layer : stage.layers) {
      name = std::max(name, layer.name.size());
      description = std::max(description, layer.description.size());
      output = std::max(output, layer.output.to_string().size());
    }
  }
  for (std::size_t k = 0; k < stages.size(); ++k) {
    const StageInfo& stage = stages[k];
    fmt::print(
        "stage {}: {}, {}, {} of the weights, {}\n", k,
        counted(static_cast<std::int64_t>(stage.layers.size()), "layer"),
        counted(stage.parameter_count, "parameter"),
        stage.weight_copies == 1 ? std::string("1 copy") : fmt::format("{} copies", stage.weight_copies),
        counted(stage.stash_slots, "stash slot"));
    for (const LayerInfo& layer : stage.layers) {
      const std::string parameters = layer.parameters > 0 ? std::to_string(layer.parameters) : "";
      fmt::print("  {:<{}}  {:<{}}  {:>{}}  {:>9}\n", layer.name, name, layer.description, description,
                 layer.output.to_string(), output, parameters);
    }
  }
}

void print_memory(const std::vector<StageInfo>& stages) {
  struct Row {
    const char* name;
    std::size_t StageMemory::*bytes;
  };
  constexpr Row kRows[] = {{"weights", &StageMemory::weights},     {"gradients", &StageMemory::gradients},
                           {"optimizer", &StageMemory::optimizer}, {"predicted", &StageMemory::predicted},
                           {"versions", &StageMemory::versions},   {"states", &StageMemory::states},
                           {"stash", &StageMemory::stash},         {"workspace", &StageMemory::workspace},
                           {"transfers", &StageMemory::transfers}};
  fmt::print("\n{:<10}", "memory");
  for (std::size_t k = 0; k < stages.size(); ++k) fmt::print("{:>12}", fmt::format("stage {}", k));
  fmt::print("{:>12}\n", "all");
  for (const Row& row : kRows) {
    std::size_t sum = 0;
    fmt::print("{:<10}", row.name);
    for (const StageInfo& stage : stages) {
      sum += stage.memory.*row.bytes;
      fmt::print("{:>12}", bytes_text(stage.memory.*row.bytes));
    }
    fmt::print("{:>12}\n", bytes_text(sum));
  }
  fmt::print("{:<10}", "total");
  for (const StageInfo& stage : stages) fmt::print("{:>12}", bytes_text(stage.memory.total()));
  fmt::print("{:>12}\n", bytes_text(planned_bytes(stages)));
}

void print_schedule(const Options& options) {
  const int work = 2 * options.stages + options.delay + 2;
  ScheduleRequest request = schedule_request(options);
  request.minibatches = std::max(2, (work + options.micro_batches - 1) / options.micro_batches);
  const Schedule schedule = make_schedule(options.method, request);
  fmt::print("\nschedule of {}, {} mini-batches of {}\n{}", options.method, request.minibatches,
             options.micro_batches == 1 ? std::string("1 micro-batch")
                                        : fmt::format("{} micro-batches", options.micro_batches),
             draw(schedule));
}

}  // namespace

ExitCode plan(const Options& options) {
  const Device device = choose_device(options.device);
  const auto engine = make_engine(options, data_shape(options), device);
  const std::vector<StageInfo> stages = engine->stage_info();
  if (options.json) {
    fmt::print("{}\n", plan_json(stages));
    return kSuccess;
  }
  fmt::print("{} on {}, batches of {}, {} stages, {}, {}, {}\n\n", options.model, options.data,
             options.batch_size, stages.size(), options.method, rule_name(options), to_string(device));
  print_layers(stages);
  print_memory(stages);
  print_schedule(options);
  return kSuccess;
}

}  // namespace pipeoptim::app
