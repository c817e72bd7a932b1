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

}  // namespace

PendingFile::PendingFile(const std::filesystem::path& target) : target_(target) {
  std::error_code ignored;
  // A rename would replace a link or a device by a file.
  if (std::filesystem::is_symlink(target, ignored)) {
    target_ = std::filesystem::weakly_canonical(target, ignored);
  }
  if (std::filesystem::exists(target_, ignored) && !std::filesystem::is_regular_file(target_, ignored)) {
    fail(target, "it exists and is no regular file");
  }
  pending_ = target_;
  pending_ += ".part-" + std::to_string(::getpid());
  file_ = std::fopen(pending_.c_str(), "wbe");
  if (!file_) fail(target, std::strerror(errno));
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
  const bool flushed = std::fflush(file_) == 0 && ::fsync(::fileno(file_)) == 0;
  const int reason = errno;
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (!flushed || !closed) fail(target_, std::strerror(flushed ? errno : reason));
  std::error_code status;
  std::filesystem::rename(pending_, target_, status);
  if (status) fail(target_, status.message());
  pending_.clear();
}

}  // namespace pipeoptim
