// TensorBoard event files with scalars, nothing else.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace pipeoptim {

// Writes events.out.tfevents.<seconds>.<host> into a folder, which is made if need be. Throws DataError where
// that fails.
class TensorBoardWriter {
 public:
  explicit TensorBoardWriter(const std::filesystem::path& folder);

  void scalar(std::string_view tag, std::int64_t step, double value);
  void flush();
  const std::filesystem::path& file() const { return path_; }

 private:
  void write_record(const std::string& event);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

namespace detail {
// CRC-32C, and its masked form in TFRecord files.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);
}  // namespace detail

}  // namespace pipeoptim
