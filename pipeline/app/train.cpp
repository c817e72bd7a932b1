// `pipeoptim train`.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>

#include "kernels/runtime/device.h"
#include "pipeline/app/app.h"
#include "pipeline/app/interrupt.h"
#include "pipeline/app/processes.h"
#include "pipeline/app/progress.h"
#include "pipeline/app/recorder.h"
#include "pipeline/app/records.h"
#include "pipeline/app/setup.h"
#include "pipeline/trainer.h"

namespace pipeoptim::app {
namespace {

// What "auto" leaves open, once the number of steps is known.
void settle_schedule(LrScheduleConfig& lr, bool lr_given, std::int64_t steps) {
  const bool automatic = lr.kind == "auto";
  if (automatic) lr.kind = lr_given ? "constant" : "cosine";
  if (lr.warmup_steps < 0) lr.warmup_steps = automatic && !lr_given ? steps / 20 : 0;
  lr.total_steps = steps;
}

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
             parameters, options.data, stages.size(), options.method, options.optimizer.rule,
             options.lr.base_lr, options.lr.kind, options.batch_size, processors(options, stages, role));
  std::fflush(stdout);
}

double bubble(const StageTiming& timing) {
  return timing.total_seconds > 0 ? std::max(0.0, 1 - timing.busy_seconds / timing.total_seconds) : 0;
}

void print_end(const Options& options, const Engine& engine, const TrainingResult& result) {
  if (options.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::parse(epoch_line(result.last));
    all["steps"] = result.steps;
    all["bubble"] = nlohmann::ordered_json::array();
    for (const StageTiming& timing : result.timing) all["bubble"].push_back(bubble(timing));
    fmt::print("{}\n", all.dump());
    return;
  }
  if (result.last.test_accuracy) {
    fmt::print("test accuracy {:.2f} %, test loss {:.4f}, after {} steps\n", 100 * *result.last.test_accuracy,
               *result.last.test_loss, result.steps);
  }
  if (options.quiet) return;
  fmt::print("bubble");
  for (std::size_t k = 0; k < result.timing.size(); ++k) {
    fmt::print("{} stage {} {:.1f} %", k ? "," : "", k, 100 * bubble(result.timing[k]));
  }
  fmt::print("\n");
  if (result.last.skipped_updates > 0) {
    fmt::print("{} updates with a gradient that is not finite were skipped, the last in {}\n",
               result.last.skipped_updates, engine.last_skip());
  }
}

// A training run from its data to its results. Members in the order in which they may fail.
class Job {
 public:
  Job(CommandLine& line, ProcessGroup* group)
      : line_(line),
        role_(role_of(group)),
        options_(line.options()),
        device_(group != nullptr ? own_device(options_) : choose_device(options_.device)),
        recorder_(options_, role_),
        engine_(make_engine(options_, data_shape(options_), device_, recorder_.traces(), group)),
        train_loader_(make_train_loader(options_, load_data(options_, Split::kTrain), device_)),
        test_loader_(make_test_loader(options_, load_data(options_, Split::kTest), device_)),
        train_source_(train_loader_),
        test_source_(test_loader_) {
    settle_cuts();
    options_.device = device_.backend == Backend::kHost ? "cpu" : "cuda";
    epochs_ = options_.epochs;
    if (options_.steps > 0)
      epochs_ = (options_.steps + train_loader_.minibatches() - 1) / train_loader_.minibatches();
    options_.epochs = epochs_;
    config_.steps = options_.steps > 0 ? options_.steps : epochs_ * train_loader_.minibatches();
    config_.evaluate_every = options_.eval_every;
    settle_schedule(options_.lr, options_.lr_given, config_.steps);
    if (group != nullptr) require_same_settings(*group, settings());
    config_.learning_rate = [rates = LrSchedule(options_.lr)](std::int64_t step) { return rates.at(step); };
    if (options_.init.empty()) {
      initialise(*engine_, options_.seed);
    } else {
      load_weights(*engine_, options_.init);
    }
  }

  ExitCode run() {
    recorder_.open(line_.resolved_config());
    const bool silent = options_.quiet || options_.json || !role_.reports;
    if (!silent) print_header(options_, *engine_, role_);
    const InterruptGuard guard;
    TrainingResult result;
    {
      Progress progress(choose_display(silent), choose_color(options_.color), config_.steps, epochs_);
      result = pipeoptim::train(*engine_, data(), config_, callbacks(progress));
    }
    if (role_.reports) print_end(options_, *engine_, result);
    const std::vector<std::string> written = recorder_.finish(*engine_);
    if (!silent) {
      for (const std::string& file : written) fmt::print("{}\n", file);
    }
    if (!result.interrupted) return kSuccess;
    if (!role_.reports) return kInterrupted;
    std::fflush(stdout);
    const bool saved = !options_.save.empty() || !options_.run_dir.empty();
    fmt::print(stderr, "pipeoptim: interrupted after {} of {} steps; {}\n", result.steps, config_.steps,
               saved ? "the weights are saved" : "nothing was saved (--save or --run-dir keeps the weights)");
    return kInterrupted;
  }

 private:
  // What has to be the same in all processes. Threads and folders are each machine's own business; whether
  // weights are saved is not, as all take part in that.
  std::string settings() const {
    std::string text = fmt::format("mini-batches = {}\ntest records = {}\nsave = {}\nrun-dir = {}\n",
                                   train_loader_.minibatches(), test_loader_.dataset().records(),
                                   !options_.save.empty(), !options_.run_dir.empty());
    std::istringstream lines(line_.resolved_config());
    for (std::string line; std::getline(lines, line);) {
      const std::string key = line.substr(0, line.find(' '));
      if (key != "threads" && key != "data-dir" && key != "init") text += line + "\n";
    }
    return text;
  }

  // Several processes end where they agree to, see ProcessGroup.
  bool goes_on() const { return role_.group != nullptr || !InterruptGuard::asked(); }

  void settle_cuts() {
    options_.cuts.clear();
    int layers = 0;
    for (const StageInfo& stage : engine_->stage_info()) {
      if (layers > 0) options_.cuts.push_back(layers);
      layers += static_cast<int>(stage.layers.size());
    }
  }

  TrainerData data() {
    TrainerData data;
    data.minibatches = train_loader_.minibatches();
    data.train = [this](std::int64_t epoch, std::int64_t) -> BatchSource& {
      train_loader_.start_epoch(epoch);
      return train_source_;
    };
    data.test_minibatches = test_loader_.minibatches();
    data.test_records = test_loader_.dataset().records();
    data.test = [this]() -> BatchSource& {
      test_loader_.start_epoch(0);
      return test_source_;
    };
    return data;
  }

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
      recorder_.epoch(epoch, *engine_);
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
  std::unique_ptr<Engine> engine_;
  Loader train_loader_, test_loader_;
  LoaderSource train_source_, test_source_;
  TrainerConfig config_;
  std::int64_t epochs_ = 0;
};

}  // namespace

ExitCode train(CommandLine& line) {
  const std::unique_ptr<ProcessGroup> group = join_processes(line.options());
  try {
    name_outputs(line.options(), role_of(group.get()));
    return Job(line, group.get()).run();
  } catch (const std::exception& error) {
    if (group) group->fail(error.what());
    throw;
  }
}

}  // namespace pipeoptim::app
