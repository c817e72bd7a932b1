// The long options: bound to the members of Options once, for the command line, the config file and the
// resolved config alike.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "pipeline/app/config.h"
#include "pipeline/app/options.h"

namespace pipeoptim::app {

// One option of a subcommand, with its present value as TOML.
struct Binding {
  std::string name;  // without the dashes
  CLI::Option* option = nullptr;
  std::function<std::string()> toml;
  bool resolved = true;    // belongs to the resolved config (outputs do not)
  std::string given = {};  // the value that it was given; where that was "auto", it changes when settled
};

class CommandLine {
 public:
  CommandLine();

  // Returns the name of the subcommand, empty for none. Throws CLI::ParseError (help and version included)
  // and std::invalid_argument.
  std::string parse(int argc, const char* const* argv);

  Options& options() { return options_; }
  const Options& options() const { return options_; }
  CLI::App& app() { return app_; }
  // All settings of the chosen subcommand by name, as they are now.
  Settings settings() const;
  // The same, as a file for --config.
  std::string resolved_config() const;

 private:
  struct Subcommand {
    CLI::App* app = nullptr;
    std::vector<Binding> bindings;
  };

  void add_model(Subcommand& command);
  void add_schedule(Subcommand& command);
  void add_method(Subcommand& command);
  void add_pipeline(Subcommand& command);
  void add_processes(Subcommand& command);
  void add_optimizer(Subcommand& command);
  void add_length(Subcommand& command);
  void add_files(Subcommand& command);
  void add_simulation(Subcommand& command);
  void add_comparison(Subcommand& command);
  void add_display(Subcommand& command);
  void apply_config(Subcommand& command);
  std::vector<std::string> all_names() const;
  [[noreturn]] void refuse_extra(const Subcommand* command) const;

  template <typename T>
  CLI::Option* add(Subcommand& command, const std::string& name, T& value, const std::string& help);
  CLI::Option* add_flag(Subcommand& command, const std::string& name, bool& value, const std::string& help);

  Options options_;
  CLI::App app_;
  std::vector<std::pair<std::string, Subcommand>> commands_;
  const Subcommand* chosen_ = nullptr;
};

}  // namespace pipeoptim::app
