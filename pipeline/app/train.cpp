// `pipeoptim train`.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "kernels/runtime/device.h"
#include "pipeline/app/app.h"
#include "pipeline/app/interrupt.h"
#include "pipeline/app/memory.h"
#include "pipeline/app/processes.h"
#include "pipeline/app/progress.h"
#include "pipeline/app/recorder.h"
#include "pipeline/app/records.h"
#include "pipeline/app/setup.h"
#include "pipeline/app/training_run.h"
#include "pipeline/trainer.h"

namespace pipeoptim::app {
namespace {

std::string processors(const Options& options, std::span<const StageInfo> stages, const Role& role) {
  if (role.group != nullptr) return fmt::format("cuda, {} processes", role.group->size());
  const Device first = stages.front().device, last = stages.back().device;
  if (first.backend == Backend::kHost) return fmt::format("cpu, {} threads", options.threads);
  return first == last ? to_string(first) : to_string(first) + " to " + to_string(last);
}

void print_header(const Options& options, const Engine& engine, const Role& role) {
  std::int64_t parameters = 0;
  const std::vector<StageInfo> stages = engine.stage_info();
  for (const StageInfo& stage : stages) parameters += stage.parameter_count;
  fmt::print("{} ({} parameters) on {}, {} stages, {}, {}, lr {:g} ({}), batches of {}, {}\n", options.model,
             parameters, options.data, stages.size(), options.method, rule_name(options), options.lr.base_lr,
             options.lr.kind, options.batch_size, processors(options, stages, role));
  std::fflush(stdout);
}

// Of a run on the host: a device's memory is not the process's.
struct MemoryUse {
  std::size_t most = 0, planned = 0;
};

void print_end(const Options& options, const Engine& engine, const TrainingResult& result,
               const std::optional<MemoryUse>& memory) {
  if (options.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::parse(epoch_line(result.last));
    all["steps"] = result.steps;
    all["bubble"] = nlohmann::ordered_json::array();
    for (const StageTiming& timing : result.timing) all["bubble"].push_back(timing.bubble());
    if (memory) all["memory"] = {{"most", memory->most}, {"planned", memory->planned}};
    fmt::print("{}\n", all.dump());
    return;
  }
  if (result.last.test_accuracy) {
    fmt::print("test accuracy {:.2f} %, test loss {:.4f}, after {} steps\n", 100 * *result.last.test_accuracy,
               *result.last.test_loss, result.steps);
  }
  if (options.quiet) return;
  const char* worker = model_stages(options) == options.stages ? "stage" : "worker";
  fmt::print("bubble");
  for (std::size_t k = 0; k < result.timing.size(); ++k) {
    fmt::print("{} {} {} {:.1f} %", k ? "," : "", worker, k, 100 * result.timing[k].bubble());
  }
  fmt::print("\n");
  if (memory) fmt::print("memory {}, planned {}\n", bytes_text(memory->most), bytes_text(memory->planned));
  if (result.last.skipped_updates > 0) {
    fmt::print("{} updates with a gradient that is not finite were skipped, the last in {}\n",
               result.last.skipped_updates, engine.last_skip());
  }
}

// A training run with everything that it writes. Members in the order in which they may fail.
class Job {
 public:
  Job(CommandLine& line, ProcessGroup* group)
      : line_(line),
        role_(role_of(group)),
        options_(line.options()),
        device_(group != nullptr ? own_device(options_) : choose_device(options_.device)),
        recorder_(options_, role_),
        engine_(make_engine(options_, data_shape(options_), device_, recorder_.traces(), group)),
        run_(options_, device_, load_run_data(options_), std::move(engine_)) {
    options_.device = device_.backend == Backend::kHost ? "cpu" : "cuda";
    if (group != nullptr) require_same_settings(*group, settings());
    run_.set_first_weights();
  }

  ExitCode run() {
    recorder_.open(line_.resolved_config());
    const bool silent = options_.quiet || options_.json || !role_.reports;
    if (!silent) print_header(options_, run_.engine(), role_);
    const InterruptGuard guard;
    TrainingResult result;
    {
      Progress progress(choose_display(silent), choose_color(options_.color), run_.steps(), run_.epochs());
      result = run_.train(callbacks(progress));
    }
    if (role_.reports) print_end(options_, run_.engine(), result, memory_use());
    const std::vector<std::string> written = recorder_.finish(run_.engine());
    if (!silent) {
      for (const std::string& file : written) fmt::print("{}\n", file);
    }
    if (!result.interrupted) return kSuccess;
    if (!role_.reports) return kInterrupted;
    std::fflush(stdout);
    const bool saved = !options_.save.empty() || !options_.run_dir.empty();
    fmt::print(stderr, "pipeoptim: interrupted after {} of {} steps; {}\n", result.steps, run_.steps(),
               saved ? "the weights are saved" : "nothing was saved (--save or --run-dir keeps the weights)");
    return kInterrupted;
  }

 private:
  // What the engine took, of which it had nothing when the run was made.
  std::optional<MemoryUse> memory_use() {
    const std::size_t most = memory_.most();
    if (device_.backend != Backend::kHost || most == 0) return std::nullopt;
    return MemoryUse{most, planned_bytes(run_.engine().stage_info())};
  }

  // What has to be the same in all processes: also whether weights are saved, as all take part in that.
  Settings settings() const {
    Settings all = line_.settings();
    all.push_back({"mini-batches", std::to_string(run_.minibatches())});
    all.push_back({"test records", std::to_string(run_.test_records())});
    all.push_back({"save", options_.save.empty() ? "false" : "true"});
    all.push_back({"run-dir", options_.run_dir.empty() ? "false" : "true"});
    return all;
  }

  // Several processes end where they agree to, see ProcessGroup.
  bool goes_on() const { return role_.group != nullptr || !InterruptGuard::asked(); }

  TrainerCallbacks callbacks(Progress& progress) {
    TrainerCallbacks callbacks;
    callbacks.on_step = [&](const StepResult& step) {
      recorder_.step(step);
      progress.step(step);
      return goes_on();
    };
    if (recorder_.follows_versions()) {
      callbacks.on_version = [this](const VersionRecord& record) { recorder_.version(record); };
    }
    callbacks.on_epoch = [&](const EpochResult& epoch) {
      recorder_.epoch(epoch, run_.engine());
      if (role_.reports) progress.epoch(epoch);
      return goes_on();
    };
    return callbacks;
  }

  CommandLine& line_;
  Role role_;
  Options& options_;
  Device device_;
  Recorder recorder_;
  std::unique_ptr<Engine> engine_;  // until the run has it
  TrainingRun run_;
  MemoryGrowth memory_;
};

}  // namespace

ExitCode train(CommandLine& line) {
  return with_processes(line.options(), [&](ProcessGroup* group) {
    name_outputs(line.options(), role_of(group));
    return Job(line, group).run();
  });
}

}  // namespace pipeoptim::app
