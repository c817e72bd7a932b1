#include "models/pending_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/runtime/error.h"

namespace pipeoptim {

namespace {

[[noreturn]] void fail(const std::filesystem::path& file, const std::string& reason) {
  throw DataError(file.string() + ": cannot write: " + reason);
}

// What is written as it is: devices, pipes, and what /dev/stdout stands for.
bool is_special(const std::filesystem::path& file) {
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return false;
  return !std::filesystem::is_regular_file(file, ignored) || file.native().starts_with("/dev/");
}

// A rename would replace a link by a file. What it points to need not be there.
std::filesystem::path behind_link(const std::filesystem::path& target) {
  if (is_special(target)) return target;
  constexpr int kMostLinks = 40;
  std::error_code ignored;
  std::filesystem::path file = target;
  for (int i = 0; std::filesystem::is_symlink(file, ignored); ++i) {
    if (i == kMostLinks) fail(target, std::strerror(ELOOP));
    file = file.parent_path() / std::filesystem::read_symlink(file, ignored);  // or absolute
  }
  return file;
}

}  // namespace

PendingFile::PendingFile(const std::filesystem::path& target) : target_(behind_link(target)) {
  if (!is_special(target_)) {
    pending_ = target_;
    pending_ += ".part-" + std::to_string(::getpid());
  }
  file_ = std::fopen(pending_.empty() ? target_.c_str() : pending_.c_str(), "wbe");
  if (!file_) fail(target, std::strerror(errno));
}

void PendingFile::check(const std::filesystem::path& target) {
  const std::filesystem::path file = behind_link(target);
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) fail(target, std::strerror(EISDIR));
  if (std::filesystem::exists(file, ignored) && ::access(file.c_str(), W_OK) != 0) {
    fail(target, std::strerror(errno));
  }
  if (!is_special(file)) PendingFile{target};  // a pipe would wait for its reader
}

PendingFile::~PendingFile() {
  if (file_) std::fclose(file_);
  std::error_code ignored;
  if (!pending_.empty()) std::filesystem::remove(pending_, ignored);
}

void PendingFile::write(const void* bytes, std::size_t count) {
  if (count > 0 && std::fwrite(bytes, 1, count, file_) != count) fail(target_, std::strerror(errno));
}

void PendingFile::commit() {
  const bool flushed = std::fflush(file_) == 0 && (pending_.empty() || ::fsync(::fileno(file_)) == 0);
  const int reason = errno;
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!flushed || !closed) fail(target_, std::strerror(flushed ? errno : reason));
  if (pending_.empty()) return;
  std::error_code status;
  std::filesystem::rename(pending_, target_, status);
  if (status) fail(target_, status.message());
  pending_.clear();
}

}  // namespace pipeoptim
