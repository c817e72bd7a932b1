// Everything that a training run writes while and after it trains.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/tensorboard.h"
#include "pipeline/app/options.h"
#include "pipeline/app/output.h"
#include "pipeline/app/processes.h"
#include "pipeline/engine.h"
#include "pipeline/trainer.h"

namespace pipeoptim::app {

class Recorder {
 public:
  // Checks that all files can be written and creates none. Throws DataError, and std::invalid_argument where
  // two outputs are one file. Of several processes each makes its traces; see Role for the rest.
  explicit Recorder(const Options& options, const Role& role = {});

  // Creates the files that grow; takes those away again when one of them cannot be made.
  void open(const std::string& resolved_config);

  void step(const StepResult& step);
  void version(const VersionRecord& record);
  // Also takes over the engine's trace, and keeps the weights of the epoch in the run directory.
  void epoch(const EpochResult& epoch, Engine& engine);
  // Trace and weights. Returns what was written, for people.
  std::vector<std::string> finish(const Engine& engine);

  bool traces() const { return !options_.trace.empty() || directory_.used(); }
  bool follows_versions() const { return !options_.version_trace.empty(); }

 private:
  void create(std::optional<LineFile>& file, const std::string& path);
  void take_trace(Engine& engine);

  const Options& options_;
  const Role role_;
  RunDirectory directory_;
  std::vector<std::string> created_;
  std::optional<LineFile> log_, metrics_, versions_;
  std::unique_ptr<TensorBoardWriter> board_;
  std::vector<TraceSpan> spans_;
  std::size_t spans_left_out_ = 0;
};

}  // namespace pipeoptim::app
