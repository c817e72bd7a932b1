#include "pipeline/app/app.h"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <stdexcept>

namespace pipeoptim::app {
namespace {

int report(ExitCode code, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "pipeoptim: {}\n", message);
  if (code == kUsage) fmt::print(stderr, "'pipeoptim --help' and 'pipeoptim SUBCOMMAND --help' say more.\n");
  return code;
}

int dispatch(CommandLine& line, const std::string& subcommand) {
  Options& options = line.options();
  if (subcommand.empty()) {
    fmt::print(stderr, "{}", line.app().help());
    return kUsage;
  }
  if (subcommand == "info") return info(options);
  if (subcommand == "simulate") {
    validate_schedule(options);
    return simulate(options);
  }
  validate(options);
  if (subcommand == "compare") return compare(line);
  settle_optimizer(options);
  if (subcommand == "plan" || options.dry_run) return plan(options);
  return subcommand == "train" ? train(line) : evaluate(line);
}

}  // namespace

const char* version() { return PIPEOPTIM_VERSION; }

int run(int argc, const char* const* argv) {
  try {
    CommandLine line;
    try {
      const std::string subcommand = line.parse(argc, argv);
      const int code = dispatch(line, subcommand);
      if (std::fflush(stdout) != 0) return report(kFailure, "cannot write to standard output");
      return code;
    } catch (const CLI::Success& help) {  // --help, --version
      return line.app().exit(help, std::cout, std::cerr);
    } catch (const CLI::ParseError& error) {
      return report(kUsage, error.what());
    }
  } catch (const std::invalid_argument& error) {
    return report(kUsage, error.what());
  } catch (const std::bad_alloc&) {
    return report(kFailure,
                  "out of memory; a smaller --batch-size, or 'pipeoptim plan' to see what is needed");
  } catch (const std::logic_error& error) {
    return report(kFailure, std::string("internal error: ") + error.what());
  } catch (const std::exception& error) {
    return report(kFailure, error.what());
  }
}

}  // namespace pipeoptim::app
