#include "models/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/runtime/error.h"
#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

TEST(TensorBoard, ChecksumsAreCrc32c) {
  EXPECT_EQ(detail::crc32c("123456789"), 0xe3069283U);            // the standard check value
  EXPECT_EQ(detail::crc32c(std::string(32, '\0')), 0x8a9136aaU);  // RFC 3720, B.4
}

TEST(TensorBoard, WritesFramedEvents) {
  TemporaryFolder folder;
  std::filesystem::path file;
  {
    TensorBoardWriter writer(folder / "run/events");
    writer.scalar("train/loss", 300, 2.5);
    writer.flush();
    file = writer.file();
  }
  const std::string bytes = read_file(file);
  std::vector<std::string> events;
  for (std::size_t at = 0; at < bytes.size();) {
    std::uint64_t length = 0;
    std::uint32_t length_crc = 0, data_crc = 0;
    ASSERT_LE(at + 16, bytes.size());
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&length_crc, bytes.data() + at + 8, 4);
    ASSERT_LE(at + 16 + length, bytes.size());
    events.push_back(bytes.substr(at + 12, length));
    std::memcpy(&data_crc, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(length_crc, detail::masked_crc32c(bytes.substr(at, 8)));
    EXPECT_EQ(data_crc, detail::masked_crc32c(events.back()));
    at += 16 + length;
  }
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].substr(9),
            "\x1a\x0d"
            "brain.Event:2");
  // step 300 = ac 02; summary { value { tag; simple_value 2.5 = 0x40200000 } }
  const std::string value = std::string("\x0a\x0atrain/loss\x15", 13) + std::string("\0\0\x20\x40", 4);
  EXPECT_EQ(events[1].substr(9), std::string("\x10\xac\x02\x2a\x13\x0a\x11") + value);
}

TEST(TensorBoard, TellsUnwritableFolders) {
  TemporaryFolder folder;
  write_file(folder / "file", "");
  expect_mentions(message_of<DataError>([&] { TensorBoardWriter writer(folder / "file/run"); }),
                  {"file/run"});
}

}  // namespace
}  // namespace pipeoptim::test
