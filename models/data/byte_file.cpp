#include "models/data/byte_file.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "kernels/runtime/error.h"

namespace pipeoptim {

void fail_in_file(const std::filesystem::path& file, std::size_t offset, const std::string& expected,
                  const std::string& found) {
  throw DataError(file.string() + ": expected " + expected + ", found " + found + " (at byte " +
                  std::to_string(offset) + ")");
}

std::vector<std::uint8_t> read_bytes(const std::filesystem::path& file, std::size_t limit) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored))
    throw DataError(file.string() + ": is a folder, not a file");
  errno = 0;
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> input(gzopen(file.c_str(), "rb"), gzclose);
  if (!input) throw DataError(file.string() + ": cannot open: " + std::strerror(errno ? errno : ENOMEM));
  gzbuffer(input.get(), 1U << 17);

  constexpr std::size_t kPiece = std::size_t{1} << 20;
  std::vector<std::uint8_t> bytes;
  for (;;) {
    const std::size_t have = bytes.size();
    const std::size_t wanted = std::min(kPiece, limit + 1 - have);
    if (wanted == 0) break;
    bytes.resize(have + wanted);
    const int got = gzread(input.get(), bytes.data() + have, static_cast<unsigned>(wanted));
    bytes.resize(have + static_cast<std::size_t>(std::max(got, 0)));
    int status = Z_OK;
    const char* message = gzerror(input.get(), &status);
    // A stream that ends too early is reported by status alone, with the bytes that came before.
    if (got < 0 || status != Z_OK) {
      const std::string reason = status == Z_ERRNO       ? std::strerror(errno)
                                 : status == Z_BUF_ERROR ? "the compressed data ends too early"
                                                         : message;
      throw DataError(file.string() + ": corrupt gzip or unreadable after " + std::to_string(bytes.size()) +
                      " bytes of content: " + reason);
    }
    if (static_cast<std::size_t>(got) < wanted) break;
  }
  return bytes;
}

}  // namespace pipeoptim
