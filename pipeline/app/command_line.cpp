#include "pipeline/app/command_line.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <type_traits>

#include "kernels/runtime/device.h"
#include "kernels/runtime/names.h"
#include "models/data/dataset.h"
#include "models/zoo.h"
#include "pipeline/app/app.h"
#include "pipeline/app/config.h"
#include "pipeline/methods.h"

namespace pipeoptim::app {
namespace {

template <typename T>
struct IsList : std::false_type {};
template <typename T>
struct IsList<std::vector<T>> : std::true_type {};

// "256,128,64"; an empty text is an empty list.
template <typename T>
bool parse_list(const std::string& text, std::vector<T>& values) {
  values.clear();
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    T value{};
    const auto [stop, error] = std::from_chars(at, end, value);
    if (error != std::errc{} || (stop != end && (*stop != ',' || stop + 1 == end))) return false;
    values.push_back(value);
    at = stop == end ? end : stop + 1;
  }
  return true;
}

// OMP_NUM_THREADS where it is a number (the first of a list), else every core that the process may use, up to
// OMP_THREAD_LIMIT.
int default_threads() {
  const char* variable = std::getenv("OMP_NUM_THREADS");
  const int asked = variable == nullptr ? 0 : std::atoi(variable);
  return asked > 0 ? asked : std::min(usable_cores(), omp_get_thread_limit());
}

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};

// As it is typed.
template <typename T>
std::string list_text(const std::vector<T>& values) {
  return fmt::format("{}", fmt::join(values, ","));
}

template <typename T>
std::string toml_value(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_same_v<T, std::string>) {
    return toml_string(value);
  } else if constexpr (IsList<T>::value) {
    return toml_list(value);
  } else if constexpr (IsOptional<T>::value) {
    return value ? toml_value(*value) : std::string();
  } else if constexpr (std::is_floating_point_v<T>) {
    return toml_number(value);
  } else {
    return std::to_string(value);
  }
}

}  // namespace

template <typename T>
CLI::Option* CommandLine::add(Subcommand& command, const std::string& name, T& value,
                              const std::string& help) {
  CLI::Option* option = nullptr;
  if constexpr (IsList<T>::value) {
    option = command.app->add_option(
        "--" + name, [&value](const CLI::results_t& results) { return parse_list(results.at(0), value); },
        help, true, [&value] { return list_text(value); });
    option->type_name("N,N,...");
  } else if constexpr (IsOptional<T>::value) {  // whoever fills it in knows the default; the help names it
    option = command.app->add_option("--" + name, value, help);
  } else {
    option = command.app->add_option("--" + name, value, help)->capture_default_str();
  }
  option->take_last();
  command.bindings.push_back({name, option, [&value] { return toml_value(value); }});
  return option;
}

CLI::Option* CommandLine::add_flag(Subcommand& command, const std::string& name, bool& value,
                                   const std::string& help) {
  CLI::Option* option = command.app->add_flag("--" + name, value, help);
  command.bindings.push_back({name, option, [&value] { return toml_value(value); }});
  return option;
}

void CommandLine::add_model(Subcommand& command) {
  CLI::App& app = *command.app;
  app.option_defaults()->group("Model and data");
  add(command, "model", options_.model, join_names(model_names()));
  add(command, "hidden", options_.hidden, "Widths of mlp's hidden layers");
  add(command, "width", options_.width, "Channels of the first convolution of cnn and resnet20");
  add(command, "dropout", options_.dropout, "Dropout of all models but resnet20");
  add(command, "layers", options_.layers, "Blocks of gpt, LSTMs of lstm");
  add(command, "features", options_.features, "Values at each position of gpt and lstm");
  add(command, "heads", options_.heads, "Attention heads of gpt");
  add(command, "sequence-length", options_.sequence_length, "Tokens of a record of gpt and lstm");
  add(command, "vocabulary", options_.vocabulary,
      "imdb: words that are told apart (running text: its distinct bytes)");
  add(command, "data", options_.data, join_names(dataset_names()));
  add(command, "data-dir", options_.data_dir,
      "Folder of the data's files, or of its folder of that name; of text also the file (default: "
      "PIPEOPTIM_DATA; fashion-mnist: where its package puts them)");
  add(command, "batch-size", options_.batch_size, "Records of a mini-batch");
  add(command, "limit-train", options_.limit_train, "Use only the first N training records (0: all)");
  add(command, "limit-test", options_.limit_test, "Use only the first N test records (0: all)");
  add_flag(command, "no-shuffle", options_.no_shuffle,
           "Records in the order of the file, as they are (no augmentation)");
  add_flag(command, "no-augment", options_.no_augment, "No random crops and flips (mlp has none anyway)");
  add(command, "seed", options_.seed, "Seed of weights, order, augmentation and dropout");
  add(command, "label-smoothing", options_.label_smoothing,
      "Weight of the uniform target in the training loss");
}

// What a schedule depends on.
void CommandLine::add_schedule(Subcommand& command) {
  command.app->option_defaults()->group("Pipeline");
  add(command, "stages", options_.stages, "Pipeline stages, or workers where each holds several (--chunks)");
  add(command, "horizon", options_.horizon,
      "pipeoptim, delayed: how far a prediction looks: " + join_names(horizon_names()));
  add(command, "step-decay", options_.optimizer.step_decay,
      "difference: decay of the average of the weights' steps (0: the last step)");
  add(command, "micro-batches", options_.micro_batches, "Micro-batches of a mini-batch");
  add(command, "chunks", options_.chunks,
      "Stages that each worker holds: interleaved, naive, pipedream, pipeoptim (0: the method's default)");
  add(command, "delay", options_.delay, "delayed: updates between a forward and its backward");
  add(command, "costs", options_.costs,
      "simulate, zb-auto: cost of forward, input gradient, weight gradient");
  add(command, "activation-limit", options_.activation_limit,
      "zb-auto: micro-batches in flight on a worker (0: 2D-1, as zb-h2)");
}

void CommandLine::add_method(Subcommand& command) {
  add(command, "method", options_.method, join_names(method_names()));
}

void CommandLine::add_pipeline(Subcommand& command) {
  add_schedule(command);
  add(command, "cuts", options_.cuts, "First layer of stages 1, 2, ... (default: balanced by cost)");
  add(command, "predictor", options_.predictor,
      "What predicts weights: " + join_names(predictor_names()) + "; pipemare has its own");
  add(command, "pipemare-anneal", options_.pipemare_anneal,
      "pipemare: steps of the lower rates at the start (-1: a quarter of all; 0: none)");
  add(command, "pipemare-decay", options_.pipemare_decay, "pipemare: decay of the average weight step");
  add(command, "threads", options_.threads,
      "Host threads, divided over the stages (default: OMP_NUM_THREADS, or usable cores up to "
      "OMP_THREAD_LIMIT)");
  add(command, "cpu-bind", options_.cpu_bind,
      "On the cpu: none, or auto: each stage's threads on cores of their own, where there are enough");
  add(command, "device", options_.device, "auto, cpu, cuda");
  add(command, "devices", options_.devices,
      "CUDA devices, over which the stages are divided in order (0: all, at most one a stage)");
  add(command, "matrix-precision", options_.matrix_precision,
      "Of products and convolutions: fp32, or faster bf16 (factors of 7 bits, and activations where layers "
      "can) or, on CUDA, tf32 (factors of 10 bits)");
  add(command, "row-kernels", options_.row_kernels,
      "Of batch norm and pooling on CUDA: own, or cudnn, where it has a plan for the shape");
  add_flag(command, "cuda-graph", options_.cuda_graph,
           "Launch forwards, backwards with the loss, and updates as CUDA graphs: the same results, fewer "
           "launches");
}

void CommandLine::add_processes(Subcommand& command) {
  command.app->option_defaults()->group("Processes");
  const std::size_t first = command.bindings.size();
  CLI::Option* rank = add(command, "rank", options_.rank, "Which of several processes this one is");
  CLI::Option* size = add(command, "world-size", options_.world_size, "Their number");
  add(command, "rendezvous", options_.rendezvous,
      "Where they meet: tcp:HOST:PORT of rank 0, file:PATH, or mpi (default: MASTER_ADDR, MASTER_PORT, or "
      "mpi under its launcher)");
  add(command, "rendezvous-timeout", options_.rendezvous_timeout, "Seconds to wait for each other");
  for (CLI::Option* option : {rank, size}) option->default_str("as the launcher says");
  for (std::size_t i = first; i < command.bindings.size(); ++i) command.bindings[i].resolved = false;
}

void CommandLine::add_optimizer(Subcommand& command) {
  command.app->option_defaults()->group("Optimizer");
  OptimizerConfig& optimizer = options_.optimizer;
  add(command, "optimizer", optimizer.rule,
      join_names(optimizer_names()) + "; async-nag and spike compensation have their own");
  add(command, "lr", options_.lr.base_lr, "Learning rate");
  add(command, "momentum", optimizer.momentum, "sgdm, nesterov, muon: momentum (0.9; muon 0.95)");
  add(command, "dampening", optimizer.dampening, "sgdm: dampening");
  add(command, "weight-decay", optimizer.weight_decay, "Decay of weights (not of biases and norms)");
  add(command, "beta1", optimizer.beta1,
      "adam, adamw, nadam, adan, lion, muon's vectors: decay of the first moment (0.9; adan 0.98; async-nag "
      "0.99)");
  add(command, "beta2", optimizer.beta2,
      "adam, adamw, nadam, muon's vectors: decay of the second moment (0.999); lion: of its momentum (0.99); "
      "adan: of the gradients' differences (0.92)");
  add(command, "beta3", optimizer.beta3, "adan: decay of the second moment");
  add(command, "momentum-decay", optimizer.momentum_decay, "nadam: how fast its momentum rises to beta1");
  add(command, "alpha", optimizer.alpha, "rmsprop: decay of the squared gradient");
  add(command, "eps", optimizer.eps,
      "All but sgd, sgdm, nesterov, lion: added to the root (1e-8; adagrad 1e-10)");
  add(command, "clip-norm", optimizer.clip_norm, "Largest gradient norm of a stage (0: off)");
  add(command, "lr-schedule", options_.lr.kind,
      join_names(LrSchedule::kinds()) +
          ", auto (constant when --lr is given, else cosine to zero after a warm-up)");
  add(command, "warmup-steps", options_.lr.warmup_steps,
      "Linear warm-up (-1: 5 % of the steps for auto, else 0)");
  add(command, "lr-step-size", options_.lr.step_size, "step: mini-batches between two decays");
  add(command, "lr-milestones", options_.lr.milestones, "multi-step: mini-batches of the decays");
  add(command, "lr-gamma", options_.lr.gamma, "step, multi-step: factor of a decay");
  add(command, "lr-power", options_.lr.power, "polynomial: exponent");
  add(command, "final-lr", options_.lr.final_lr, "cosine, linear, polynomial: rate at the end");
}

void CommandLine::add_length(Subcommand& command) {
  command.app->option_defaults()->group("Length");
  add(command, "epochs", options_.epochs, "Passes over the training records");
  add(command, "steps", options_.steps, "Mini-batches in all, whatever --epochs says (0: whole epochs)");
  add(command, "eval-every", options_.eval_every,
      "Evaluate every N epochs and at the end (0: at the end only)");
}

void CommandLine::add_files(Subcommand& command) {
  command.app->option_defaults()->group("Files");
  const std::size_t first = command.bindings.size();
  add(command, "init", options_.init, "Weights to start from (safetensors)");
  add(command, "save", options_.save, "Where to put the trained weights (safetensors)");
  add(command, "log", options_.log, "One JSON object a mini-batch and an epoch");
  add(command, "version-trace", options_.version_trace, "One JSON object a stage and pass: weight versions");
  add(command, "trace", options_.trace, "Chrome trace of all stages (opens in Perfetto)");
  add(command, "run-dir", options_.run_dir,
      "Folder for config, metrics, TensorBoard events, trace and weights");
  add_flag(command, "overwrite", options_.overwrite, "Replace the files of an earlier run in --run-dir");
  for (std::size_t i = first + 1; i < command.bindings.size(); ++i) command.bindings[i].resolved = false;
}

void CommandLine::add_simulation(Subcommand& command) {
  command.app->option_defaults()->group("Simulation");
  add(command, "mini-batches", options_.mini_batches, "Mini-batches between two flushes");
  add(command, "update-cost", options_.update_cost, "Cost of an update, in the unit of --costs");
  add(command, "link-costs", options_.links,
      "Cost of handing on one micro-batch's activation, and of its gradient on the way back");
  add(command, "costs-from", options_.costs_from,
      "Measured costs instead: the file of --trace of one epoch with the same --stages, --chunks and "
      "--micro-batches");
}

void CommandLine::add_comparison(Subcommand& command) {
  command.app->option_defaults()->group("Comparison");
  add(command, "methods", options_.methods,
      "Methods; each may go on with +NAME of a horizon, predictor or optimizer, and with +stages=N, "
      "+micro-batches=N, +chunks=N, +delay=N: pipeoptim+paper+adam; sequential and delayed have one stage "
      "unless they say otherwise");
  add(command, "seeds", options_.seeds, "Runs of each method, with --seed, --seed + 1, ...");
  add(command, "target-loss", options_.target_loss,
      "Count the steps to this training loss (0: to one that all methods reach)");
  const std::size_t first = command.bindings.size();
  add(command, "init", options_.init, "Weights to start from (safetensors)");
  add(command, "run-dir", options_.run_dir, "Folder for config.toml and comparison.csv, .json and .html");
  add_flag(command, "overwrite", options_.overwrite, "Replace the files of an earlier run in --run-dir");
  for (std::size_t i = first + 1; i < command.bindings.size(); ++i) command.bindings[i].resolved = false;
}

void CommandLine::add_display(Subcommand& command) {
  command.app->option_defaults()->group("Program");
  const std::size_t first = command.bindings.size();
  add_flag(command, "json", options_.json, "Print the result as one JSON object and nothing else");
  add_flag(command, "quiet", options_.quiet, "Print the result only");
  add(command, "color", options_.color, "auto, always, none (auto honours NO_COLOR)");
  for (std::size_t i = first; i < command.bindings.size(); ++i) command.bindings[i].resolved = false;
  command.app->add_option("--config", options_.config, "TOML file of options; the command line overrides it");
}

CommandLine::CommandLine() : app_("Asynchronous pipeline training with weight prediction.", "pipeoptim") {
  options_.threads = default_threads();
  options_.optimizer.rule = "adamw";
  options_.lr.kind = "auto";
  options_.lr.base_lr = 2e-3;
  options_.lr.warmup_steps = -1;
  app_.set_version_flag("--version", std::string("pipeoptim ") + version());
  app_.require_subcommand(0, 1);
  app_.allow_extras();
  app_.footer("'pipeoptim SUBCOMMAND --help' lists the options of a subcommand and their defaults.");
  commands_.reserve(6);
  for (const auto& [name, help] :
       {std::pair{"train", "Train a model through a pipeline"},
        std::pair{"eval", "Loss and accuracy of saved weights"},
        std::pair{"plan", "Show stages, memory and schedule without training"},
        std::pair{"compare", "Train several methods and compare them"},
        std::pair{"simulate", "Time, bubble and memory of a schedule for given costs"},
        std::pair{"info", "Devices, versions, and everything that has a name"}}) {
    commands_.push_back({name, {app_.add_subcommand(name, help), {}}});
    commands_.back().second.app->allow_extras();
  }
  const auto command_named = [this](const char* name) -> Subcommand& {
    return std::find_if(commands_.begin(), commands_.end(),
                        [&](const auto& entry) { return entry.first == name; })
        ->second;
  };
  Subcommand& train = command_named("train");
  for (Subcommand* command : {&train, &command_named("plan")}) {
    add_model(*command);
    add_pipeline(*command);
    add_method(*command);
    add_optimizer(*command);
    add_length(*command);
    add_files(*command);
    add_display(*command);
  }
  add_processes(train);
  train.app->add_flag("--dry-run", options_.dry_run, "Show the plan and end");
  Subcommand& compare = command_named("compare");
  add_model(compare);
  add_pipeline(compare);
  add_optimizer(compare);
  add_length(compare);
  add_comparison(compare);
  add_display(compare);
  Subcommand& simulate = command_named("simulate");
  add_schedule(simulate);
  add_method(simulate);
  add_simulation(simulate);
  simulate.app->add_flag("--json", options_.json, "Print one JSON object");
  Subcommand& eval = command_named("eval");
  add_model(eval);
  add_pipeline(eval);
  add_method(eval);
  add_processes(eval);
  eval.app->option_defaults()->group("Files");
  add(eval, "init", options_.init, "Weights to evaluate (safetensors)");
  add_display(eval);
  command_named("info").app->add_flag("--json", options_.json, "Print one JSON object");
}

std::string CommandLine::parse(int argc, const char* const* argv) {
  app_.parse(argc, argv);
  for (auto& [name, command] : commands_) {
    if (!command.app->parsed()) continue;
    if (!command.app->remaining().empty()) refuse_extra(&command);
    chosen_ = &command;
    if (!options_.config.empty()) apply_config(command);
    for (Binding& binding : command.bindings) {
      if (binding.option->count() == 0) continue;
      binding.given = binding.toml();
      if (binding.name == "lr") options_.lr_given = true;
    }
    return name;
  }
  if (!app_.remaining().empty()) refuse_extra(nullptr);
  return {};
}

void CommandLine::refuse_extra(const Subcommand* command) const {
  const std::string extra = command ? command->app->remaining().front() : app_.remaining().front();
  std::vector<std::string> known;
  if (command && extra.rfind("--", 0) == 0) {
    for (const CLI::Option* option : command->app->get_options()) {
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    }
    const std::string name = extra.substr(0, extra.find('='));
    throw std::invalid_argument("unknown option '" + name + "'; did you mean '" + nearest_name(name, known) +
                                "'?");
  }
  if (command || extra.rfind('-', 0) == 0) throw std::invalid_argument("unexpected argument '" + extra + "'");
  for (const auto& entry : commands_) known.push_back(entry.first);
  throw std::invalid_argument(unknown_name("subcommand", extra, known));
}

std::vector<std::string> CommandLine::all_names() const {
  std::vector<std::string> names;
  for (const auto& entry : commands_) {
    for (const Binding& binding : entry.second.bindings) names.push_back(binding.name);
  }
  return names;
}

namespace {

bool gives(const std::vector<Binding>& bindings, std::initializer_list<std::string_view> names) {
  return std::any_of(bindings.begin(), bindings.end(), [names](const Binding& binding) {
    return binding.option->count() > 0 && std::find(names.begin(), names.end(), binding.name) != names.end();
  });
}

// Settings of a file that make sense only beside others of it, which the command line replaces.
std::vector<std::string> outdated_names(const std::vector<Binding>& bindings) {
  std::vector<std::string> names;
  if (gives(bindings, {"model", "stages", "chunks"})) names.push_back("cuts");
  if (gives(bindings, {"epochs"})) names.push_back("steps");
  return names;
}

// Empty where it is not part of a config, or has no value and so the default.
std::string config_value(const Binding& binding) { return binding.resolved ? binding.toml() : std::string(); }

bool changes_settings(const std::vector<Binding>& bindings) {
  return std::any_of(bindings.begin(), bindings.end(), [](const Binding& binding) {
    return binding.resolved && !is_local(binding.name) && binding.option->count() > 0;
  });
}

}  // namespace

// What the command line gave stays. Keys that belong to another subcommand are passed over, so that the
// config of a training run serves its evaluation. What the program chose for that run is chosen anew where
// the command line changes it.
void CommandLine::apply_config(Subcommand& command) {
  const std::vector<std::string> known = all_names(), outdated = outdated_names(command.bindings);
  const bool changed = changes_settings(command.bindings);
  const Config config = read_config(options_.config);
  const auto apply = [&](const auto& setting, bool given) {
    const auto& [key, value] = setting;
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw std::invalid_argument(options_.config + ": unknown key '" + key + "'; did you mean '" +
                                  nearest_name(key, known) + "'?");
    }
    if (std::find(outdated.begin(), outdated.end(), key) != outdated.end()) return;
    for (const Binding& binding : command.bindings) {
      if (binding.name != key || binding.option->count() > 0) continue;
      try {
        binding.option->add_result(value);
        binding.option->run_callback();
      } catch (const CLI::Error&) {
        throw std::invalid_argument(options_.config + ": '" + value + "' is not a value for '" + key + "'");
      }
      if (!given) binding.option->clear();  // the value stays
    }
  };
  for (const auto& setting : config.given) apply(setting, true);
  // A comparison chooses for each of its methods, all others for one.
  const auto has_methods = [](const Settings& settings) {
    return std::any_of(settings.begin(), settings.end(),
                       [](const auto& setting) { return setting.first == "methods"; });
  };
  const bool of_comparison = has_methods(config.given) || has_methods(config.defaults);
  if (changed || of_comparison != (command.app->get_name() == "compare")) return;
  for (const auto& setting : config.defaults) apply(setting, false);
}

Settings CommandLine::settings() const {
  Settings settings;
  if (chosen_ == nullptr) return settings;
  for (const Binding& binding : chosen_->bindings) {
    const std::string value = config_value(binding);
    if (!value.empty()) settings.push_back({binding.name, value});
  }
  return settings;
}

std::string CommandLine::resolved_config() const {
  std::string given = "# The settings of this run; give them to pipeoptim with --config.\n", defaults;
  if (chosen_ == nullptr) return given;
  for (const Binding& binding : chosen_->bindings) {
    const std::string value = config_value(binding);
    if (value.empty()) continue;
    (binding.given == value ? given : defaults) += binding.name + " = " + value + "\n";
  }
  return given + "\n# What the program chose. It chooses anew where the command line changes a setting.\n[" +
         kDefaultsTable + "]\n" + defaults;
}

}  // namespace pipeoptim::app
