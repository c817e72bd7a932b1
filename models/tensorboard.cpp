#include "models/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "kernels/runtime/error.h"

namespace pipeoptim {

namespace detail {

std::uint32_t crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> entries{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82f63b78U : 0U);
      entries[i] = value;
    }
    return entries;
  }();
  std::uint32_t crc = ~0U;
  for (const char byte : bytes) crc = table[(crc ^ static_cast<unsigned char>(byte)) & 255U] ^ (crc >> 8);
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8U; }

}  // namespace detail

namespace {

// Protocol buffers by hand: a key is (field << 3 | wire type).
enum Wire : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 128; value >>= 7) out.push_back(static_cast<char>(value | 128));
  out.push_back(static_cast<char>(value));
}

template <typename T>
void put_raw(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_key(std::string& out, std::uint64_t field, Wire wire) { put_varint(out, field << 3 | wire); }

void put_bytes(std::string& out, std::uint64_t field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out.append(bytes);
}

// Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
std::string begin_event() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_key(event, 1, kFixed64);
  put_raw(event, now.count());
  return event;
}

}  // namespace

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder) : file_(nullptr, std::fclose) {
  std::error_code status;
  std::filesystem::create_directories(folder, status);
  if (status) throw DataError(folder.string() + ": cannot make the folder: " + status.message());
  char host[256] = "localhost";
  if (::gethostname(host, sizeof(host) - 1) != 0) std::strcpy(host, "localhost");
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch());
  path_ = folder / ("events.out.tfevents." + std::to_string(seconds.count()) + "." + host);
  file_.reset(std::fopen(path_.c_str(), "wbe"));
  if (!file_) throw DataError(path_.string() + ": cannot write: " + std::strerror(errno));
  std::string event = begin_event();
  put_bytes(event, 3, "brain.Event:2");
  write_record(event);
}

// Summary { repeated Value { string tag = 1; float simple_value = 2; } value = 1; }
void TensorBoardWriter::scalar(std::string_view tag, std::int64_t step, double value) {
  std::string entry;
  put_bytes(entry, 1, tag);
  put_key(entry, 2, kFixed32);
  put_raw(entry, static_cast<float>(value));
  std::string summary;
  put_bytes(summary, 1, entry);
  std::string event = begin_event();
  put_key(event, 2, kVarint);
  put_varint(event, static_cast<std::uint64_t>(step));
  put_bytes(event, 5, summary);
  write_record(event);
}

void TensorBoardWriter::flush() {
  if (std::fflush(file_.get()) != 0) {
    throw DataError(path_.string() + ": cannot write: " + std::strerror(errno));
  }
}

// TFRecord: length, masked CRC of the length, data, masked CRC of the data.
void TensorBoardWriter::write_record(const std::string& event) {
  std::string record;
  put_raw(record, static_cast<std::uint64_t>(event.size()));
  put_raw(record, detail::masked_crc32c(record));
  record += event;
  put_raw(record, detail::masked_crc32c(event));
  if (std::fwrite(record.data(), 1, record.size(), file_.get()) != record.size()) {
    throw DataError(path_.string() + ": cannot write: " + std::strerror(errno));
  }
}

}  // namespace pipeoptim
