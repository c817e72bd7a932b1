// The program `pipeoptim`: subcommands, and what they return to the shell.
#pragma once

#include "pipeline/app/command_line.h"
#include "pipeline/app/options.h"

namespace pipeoptim::app {

enum ExitCode : int { kSuccess = 0, kFailure = 1, kUsage = 2, kInterrupted = 130 };

// Parses the command line, runs the subcommand and turns every exception into one message and an exit code.
int run(int argc, const char* const* argv);

// Settles what was left to the program (--device auto, ..) in the line's options.
ExitCode train(CommandLine& line);
ExitCode evaluate(const CommandLine& line);
ExitCode plan(const Options& options);
ExitCode simulate(const Options& options);
ExitCode compare(CommandLine& line);
ExitCode info(const Options& options);

const char* version();

}  // namespace pipeoptim::app
