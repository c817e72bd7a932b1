#include "pipeline/app/output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "kernels/runtime/error.h"
#include "models/pending_file.h"

namespace pipeoptim::app {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& path, int reason) {
  throw DataError("cannot write " + path + ": " + std::generic_category().message(reason));
}

bool writable(const fs::path& path) { return faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0; }

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

}  // namespace

void check_writable(const std::string& path) {
  std::error_code ignored;
  if (path.empty()) refuse("''", ENOENT);
  if (fs::is_directory(path, ignored)) refuse(path, EISDIR);
  const fs::path folder = folder_of(path);
  if (!fs::exists(folder, ignored)) {
    throw DataError("cannot write " + path + ": the folder " + folder.string() + " does not exist");
  }
  if (!fs::is_directory(folder, ignored)) refuse(path, ENOTDIR);
  if (fs::exists(path, ignored) ? !writable(path) : !writable(folder)) refuse(path, errno);
}

void write_text(const std::string& path, const std::string& text) {
  PendingFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

LineFile::LineFile(const std::string& path) : path_(path) {
  errno = 0;
  file_.open(path, std::ios::binary | std::ios::trunc);
  if (!file_) refuse(path, errno == 0 ? EIO : errno);
}

void LineFile::write(const std::string& line) {
  file_ << line << '\n';
  const auto now = std::chrono::steady_clock::now();
  if (now - flushed_ < std::chrono::seconds(1)) return;
  flushed_ = now;
  flush();
}

void LineFile::flush() {
  errno = 0;
  file_.flush();
  if (!file_) refuse(path_, errno == 0 ? EIO : errno);
}

RunDirectory::RunDirectory(std::string path, bool overwrite) : path_(std::move(path)) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  if (path_.empty()) return;
  std::error_code ignored;
  if (!fs::exists(path_, ignored)) {
    // The nearest folder that exists decides.
    fs::path above = folder_of(path_);
    while (!fs::exists(above, ignored) && above != folder_of(above)) above = folder_of(above);
    if (!fs::is_directory(above, ignored)) refuse(path_, ENOTDIR);
    if (!writable(above)) refuse(path_, errno);
    return;
  }
  if (!fs::is_directory(path_, ignored)) refuse(path_, ENOTDIR);
  if (!writable(path_)) refuse(path_, errno);
  if (!overwrite && !earlier_files().empty()) {
    throw DataError("the run directory " + path_ + " holds an earlier run (" +
                    fs::path(earlier_files().front()).filename().string() +
                    "); name another one, or replace it with --overwrite");
  }
}

void RunDirectory::make_folder() const {
  std::error_code failed;
  fs::create_directories(path_, failed);
  if (failed) refuse(path_, failed.value());
}

void RunDirectory::create() const {
  if (path_.empty()) return;
  make_folder();
  std::error_code failed;
  for (const std::string& earlier : earlier_files()) fs::remove(earlier, failed);
}

std::vector<std::string> RunDirectory::earlier_files() const {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const std::string& path :
       {config(), metrics(), trace(), weights(), comparison("csv"), comparison("json"), comparison("html")}) {
    if (fs::exists(path, ignored)) found.push_back(path);
  }
  for (const auto& entry : fs::directory_iterator(path_, ignored)) {
    if (entry.path().filename().string().rfind("events.out.tfevents", 0) == 0) found.push_back(entry.path());
  }
  return found;
}

}  // namespace pipeoptim::app
