// A file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>

namespace pipeoptim {

// Collects bytes in a file beside `target`; commit() puts it in the target's place, the destructor removes it
// otherwise. A link keeps pointing where it points; a device or a pipe is written as it is. Every failure is
// a DataError that names the target.
class PendingFile {
 public:
  explicit PendingFile(const std::filesystem::path& target);
  // Throws where it could not be written now. Leaves nothing behind.
  static void check(const std::filesystem::path& target);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  void write(const void* bytes, std::size_t count);
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path pending_;  // empty once committed, and where the target is no regular file
  std::FILE* file_ = nullptr;
};

}  // namespace pipeoptim
