#include "pipeline/app/recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <stdexcept>

#include "models/pending_file.h"
#include "pipeline/app/records.h"
#include "pipeline/app/setup.h"

namespace pipeoptim::app {
namespace {

constexpr std::size_t kMostSpans = 500'000;  // a trace of about 50 MB

}  // namespace

Recorder::Recorder(const Options& options, const Role& role)
    : options_(options), role_(role), directory_(options.run_dir, options.overwrite) {
  if (role.saves && !options.save.empty()) PendingFile::check(options.save);
  if (!options.trace.empty()) PendingFile::check(options.trace);
  for (const std::string* path : {&options.log, &options.version_trace}) {
    if (!path->empty()) check_writable(*path);
  }
  std::map<std::string, const char*> taken;
  for (const auto& [name, path] :
       {std::pair{"--log", &options.log}, std::pair{"--version-trace", &options.version_trace},
        std::pair{"--trace", &options.trace}, std::pair{"--save", &options.save}}) {
    if (path->empty()) continue;
    std::error_code unknown;
    std::filesystem::path place = std::filesystem::weakly_canonical(*path, unknown);
    if (unknown) place = *path;
    const auto [other, is_new] = taken.emplace(place.string(), name);
    if (!is_new && *path != "/dev/null") {
      throw std::invalid_argument(
          fmt::format("{} and {} name the same file, {}", other->second, name, *path));
    }
  }
}

void Recorder::create(std::optional<LineFile>& file, const std::string& path) {
  std::error_code ignored;
  const bool existed = std::filesystem::exists(path, ignored);
  file.emplace(path);
  if (!existed) created_.push_back(path);
}

void Recorder::open(const std::string& resolved_config) {
  try {
    if (!options_.log.empty()) create(log_, options_.log);
    if (!options_.version_trace.empty()) create(versions_, options_.version_trace);
    if (!directory_.used()) return;
    if (role_.saves) directory_.make_folder();
    if (!role_.reports) return;
    directory_.create();
    created_.push_back(directory_.config());
    write_text(directory_.config(), resolved_config);
    create(metrics_, directory_.metrics());
    board_ = std::make_unique<TensorBoardWriter>(directory_.path());
  } catch (...) {
    std::error_code ignored;
    for (const std::string& path : created_) std::filesystem::remove(path, ignored);
    throw;
  }
}

void Recorder::step(const StepResult& step) {
  if (log_) log_->write(step_line(step));
  if (metrics_) metrics_->write(step_line(step));
  if (board_) board_->scalar("loss/step", step.step, step.loss);
}

void Recorder::version(const VersionRecord& record) {
  if (versions_) versions_->write(version_line(record, options_.micro_batches));
}

void Recorder::epoch(const EpochResult& epoch, Engine& engine) {
  for (std::optional<LineFile>* file : {&log_, &metrics_}) {
    if (!*file) continue;
    (*file)->write(epoch_line(epoch));
    (*file)->flush();
  }
  if (versions_) versions_->flush();
  if (traces()) take_trace(engine);
  if (directory_.used()) save_weights(engine, directory_.weights(), role_.group);
  if (!board_) return;
  board_->scalar("loss/train", epoch.step, epoch.train_loss);
  board_->scalar("accuracy/train", epoch.step, epoch.train_accuracy);
  if (epoch.test_loss) board_->scalar("loss/test", epoch.step, *epoch.test_loss);
  if (epoch.test_accuracy) board_->scalar("accuracy/test", epoch.step, *epoch.test_accuracy);
  board_->scalar("learning_rate", epoch.step, static_cast<double>(epoch.learning_rate));
  board_->scalar("samples_per_second", epoch.step, epoch.samples_per_second);
  board_->flush();
}

void Recorder::take_trace(Engine& engine) {
  const std::vector<TraceSpan> spans = engine.take_trace();
  const std::size_t room = std::min(spans.size(), kMostSpans - spans_.size());
  spans_.insert(spans_.end(), spans.begin(), spans.begin() + static_cast<std::ptrdiff_t>(room));
  spans_left_out_ += spans.size() - room;
}

std::vector<std::string> Recorder::finish(const Engine& engine) {
  std::vector<std::string> written;
  // The weights first: they are what cannot be had again.
  if (!options_.save.empty()) {
    save_weights(engine, options_.save, role_.group);
    written.push_back("weights: " + options_.save);
  }
  if (traces()) {
    const std::string text = chrome_trace(spans_, static_cast<int>(engine.stage_info().size()));
    const std::string rest =
        spans_left_out_ == 0 ? std::string() : fmt::format(" (without the last {} events)", spans_left_out_);
    if (directory_.used() && role_.reports) write_text(directory_.trace(), text);
    if (!options_.trace.empty()) {
      write_text(options_.trace, text);
      written.push_back("trace: " + options_.trace + rest);
    }
  }
  if (!options_.log.empty()) written.push_back("log: " + options_.log);
  if (!options_.version_trace.empty()) written.push_back("weight versions: " + options_.version_trace);
  if (directory_.used()) written.push_back("run directory: " + directory_.path());
  return written;
}

}  // namespace pipeoptim::app
