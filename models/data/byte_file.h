// A file read as a whole, gzip or plain: the readers' common ground, and the one place for its errors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace pipeoptim {

// The content, decompressed when it begins with gzip's magic. Reads at most `limit` + 1 bytes of content, so
// that a foreign or hostile file cannot fill the memory. Throws DataError: missing, unreadable, corrupt gzip.
std::vector<std::uint8_t> read_bytes(const std::filesystem::path& file, std::size_t limit);

// "FILE: expected EXPECTED, found FOUND (at byte OFFSET)", as a DataError.
[[noreturn]] void fail_in_file(const std::filesystem::path& file, std::size_t offset,
                               const std::string& expected, const std::string& found);

}  // namespace pipeoptim
