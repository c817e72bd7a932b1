// `pipeoptim compare`: the same training by several methods.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "pipeline/app/app.h"
#include "pipeline/app/comparison.h"
#include "pipeline/app/interrupt.h"
#include "pipeline/app/output.h"
#include "pipeline/app/progress.h"
#include "pipeline/app/training_run.h"
#include "pipeline/methods.h"

namespace pipeoptim::app {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

bool among(const std::string& name, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

int whole_number(const std::string& text, const std::string& part) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw std::invalid_argument("--methods: '" + part + "' needs a whole number");
  }
  return value;
}

// One "+..." of a method.
void apply(Options& options, const std::string& part) {
  if (const std::size_t equals = part.find('='); equals != std::string::npos) {
    const std::string key = part.substr(0, equals);
    const std::vector<std::pair<std::string, int*>> numbers = {{"stages", &options.stages},
                                                               {"micro-batches", &options.micro_batches},
                                                               {"chunks", &options.chunks},
                                                               {"delay", &options.delay}};
    for (const auto& [name, value] : numbers) {
      if (name == key) {
        *value = whole_number(part.substr(equals + 1), part);
        return;
      }
    }
  }
  if (among(part, horizon_names())) {
    options.horizon = part;
  } else if (among(part, predictor_names())) {
    options.predictor = part;
  } else if (among(part, optimizer_names())) {
    options.optimizer.rule = part;
  } else {
    throw std::invalid_argument("--methods: '" + part +
                                "' is no horizon, predictor or optimizer, and none of stages=N, "
                                "micro-batches=N, chunks=N, delay=N");
  }
}

// Everything about one line of the table. One stage is what methods without a pipeline are timed with.
Options contender_options(const Options& common, const std::string& text) {
  const std::vector<std::string> parts = split(text, '+');
  Options options = common;
  options.method = parts[0];
  const Method& method = find_method(options.method);
  const bool delayed = method.order == ComputeOrder::kDelayed;
  if (delayed || method.order == ComputeOrder::kSequential) {
    options.stages = 1;
    options.cuts.clear();
    options.devices = std::min(options.devices, 1);
  }
  if (!delayed) options.delay = 0;
  if (options.chunks > method.chunks.most) options.chunks = 0;
  for (std::size_t i = 1; i < parts.size(); ++i) apply(options, parts[i]);
  validate(options);
  settle_optimizer(options);
  return options;
}

double mean_bubble(const std::vector<StageTiming>& timing) {
  double sum = 0;
  for (const StageTiming& worker : timing) sum += worker.bubble();
  return timing.empty() ? 0 : sum / static_cast<double>(timing.size());
}

class Study {
 public:
  explicit Study(CommandLine& line)
      : line_(line),
        options_(line.options()),
        device_(choose_device(options_.device)),
        shape_(data_shape(options_)),
        directory_(options_.run_dir, options_.overwrite) {
    for (const std::string& text : split(options_.methods, ',')) {
      settings_.push_back(contender_options(options_, text));
      comparison_.contenders.push_back(
          {.label = text, .weight_versions = {}, .stage_bytes = {}, .runs = {}, .diverged = {}});
      // Refuses before the first run what the last could not do.
      describe(comparison_.contenders.back(), *make_engine(settings_.back(), shape_, device_));
    }
    data_ = load_run_data(options_);
    comparison_.setting =
        fmt::format("{} on {}, {}, lr {:g}, batches of {}, {} seeds", options_.model, options_.data,
                    options_.optimizer.rule, options_.lr.base_lr, options_.batch_size, options_.seeds);
  }

  ExitCode run() {
    directory_.create();
    const InterruptGuard guard;
    bool complete = true;
    // Seed by seed: whenever it is stopped, the methods have been treated alike as far as possible.
    for (int seed = 0; seed < options_.seeds && complete; ++seed) {
      for (std::size_t i = 0; i < settings_.size() && complete; ++i) {
        complete = train(i, options_.seed + static_cast<std::uint64_t>(seed));
        if (complete) report();
      }
    }
    show();
    if (complete) return kSuccess;
    fmt::print(stderr, "pipeoptim: interrupted; the comparison holds the runs that were complete\n");
    return kInterrupted;
  }

 private:
  bool silent() const { return options_.quiet || options_.json; }

  static void describe(Contender& contender, const Engine& engine) {
    for (const StageInfo& stage : engine.stage_info()) {
      contender.weight_versions.push_back(stage.weight_copies);
      contender.stage_bytes.push_back(stage.memory.total());
    }
  }

  // False: it was interrupted, and the run does not count.
  bool train(std::size_t index, std::uint64_t seed) {
    Options options = settings_[index];
    options.seed = seed;
    Contender& contender = comparison_.contenders[index];
    TrainingRun run(options, device_, data_, make_engine(options, shape_, device_));
    run.set_first_weights();
    if (started_++ == 0) options_.lr = options.lr;  // the same in every run, and settled with the first
    if (!silent()) {
      fmt::print("{}, seed {} (run {} of {})\n", contender.label, seed, started_,
                 settings_.size() * static_cast<std::size_t>(options_.seeds));
      std::fflush(stdout);
    }
    ComparedRun result;
    result.seed = seed;
    double records = 0, seconds = 0;
    Progress progress(choose_display(silent()), choose_color(options_.color), run.steps(), run.epochs());
    TrainerCallbacks callbacks;
    callbacks.on_step = [&](const StepResult& step) {
      result.losses.push_back(step.loss);
      progress.step(step);
      return !InterruptGuard::asked();
    };
    callbacks.on_epoch = [&](const EpochResult& epoch) {
      if (epoch.test_accuracy)
        result.evaluations.push_back({epoch.step, *epoch.test_accuracy, *epoch.test_loss});
      records += epoch.samples_per_second * epoch.seconds;
      seconds += epoch.seconds;
      progress.epoch(epoch);
      return !InterruptGuard::asked();
    };
    TrainingResult trained;
    try {
      trained = run.train(callbacks);
    } catch (const DataError& error) {  // its loss is not finite: a result, too
      progress.clear();
      if (!silent()) fmt::print("{}\n", error.what());
      contender.diverged.push_back({seed, static_cast<std::int64_t>(result.losses.size())});
      return true;
    }
    if (trained.interrupted) return false;
    result.samples_per_second = seconds > 0 ? records / seconds : 0;
    result.bubble = mean_bubble(trained.timing);
    contender.runs.push_back(std::move(result));
    return true;
  }

  // After every run, so that a long comparison never loses more than one.
  void report() {
    comparison_.target_loss =
        options_.target_loss > 0 ? options_.target_loss : common_loss(comparison_.contenders);
    if (!directory_.used()) return;
    if (!reported_) write_text(directory_.config(), line_.resolved_config());
    write_text(directory_.comparison("csv"), comparison_csv(comparison_));
    write_text(directory_.comparison("json"), comparison_json(comparison_));
    write_text(directory_.comparison("html"), comparison_page(comparison_));
    reported_ = true;
  }

  void show() const {
    if (options_.json) {
      fmt::print("{}", comparison_json(comparison_));
      return;
    }
    fmt::print("{}{}", silent() ? "" : "\n", comparison_table(comparison_));
    if (silent() || !directory_.used() || !reported_) return;
    for (const char* form : {"csv", "json", "html"}) fmt::print("{}\n", directory_.comparison(form));
  }

  CommandLine& line_;
  Options& options_;
  Device device_;
  DataShape shape_;
  RunDirectory directory_;
  std::vector<Options> settings_;  // of each contender
  RunData data_;
  Comparison comparison_;
  std::size_t started_ = 0;
  bool reported_ = false;
};

}  // namespace

ExitCode compare(CommandLine& line) { return Study(line).run(); }

}  // namespace pipeoptim::app
