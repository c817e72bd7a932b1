#include "models/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/runtime/error.h"
#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

std::string with_length(const std::string& header, const std::string& body) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + body;
}

std::string error_of(const std::string& bytes) {
  TemporaryFolder folder;
  write_file(folder / "bad.safetensors", bytes);
  const std::string message = message_of<DataError>([&] { read_safetensors(folder / "bad.safetensors"); });
  expect_mentions(message, {"bad.safetensors"});
  return message;
}

std::string error_of(const std::string& header, std::size_t body) {
  return error_of(with_length(header, std::string(body, '\0')));
}

TEST(Safetensors, ReadsWhatItWrote) {
  TemporaryFolder folder;
  const std::vector<float> weight{1, 2.5F, -3e-30F, 4, 5, 6}, bias{0.1F}, none;
  const std::vector<TensorView> tensors{
      {"0.weight", {2, 3}, weight}, {"0.bias", {1}, bias}, {"scalar", {}, bias}, {"empty", {0, 4}, none}};
  write_safetensors(folder / "a.safetensors", tensors, {{"epoch", "3"}});
  const std::vector<StoredTensor> read = read_safetensors(folder / "a.safetensors");
  ASSERT_EQ(read.size(), tensors.size());
  for (const TensorView& tensor : tensors) {
    const auto found =
        std::find_if(read.begin(), read.end(), [&](const auto& r) { return r.name == tensor.name; });
    ASSERT_NE(found, read.end());
    EXPECT_EQ(found->shape, tensor.shape);
    EXPECT_EQ(found->values, std::vector<float>(tensor.values.begin(), tensor.values.end()));
  }
  const std::string bytes = read_file(folder / "a.safetensors");
  expect_mentions(bytes, {R"("format":"pt")", R"("epoch":"3")"});
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0U);
}

TEST(Safetensors, ReadsEveryElementTypeOfPyTorch) {
  const auto tensors = read_safetensors(PIPEOPTIM_SOURCE_DIR "/tests/golden/types.safetensors");
  ASSERT_EQ(tensors.size(), 6U);
  for (const StoredTensor& tensor : tensors) {
    if (tensor.name == "scalar") {
      EXPECT_EQ(tensor.shape.rank(), 0);
      EXPECT_EQ(tensor.values, std::vector<float>{2.5F});
    } else if (tensor.name == "i64") {
      EXPECT_EQ(tensor.shape, (Shape{2, 3}));
      EXPECT_EQ(tensor.values, (std::vector<float>{-3, -2, -1, 0, 1, 2}));
    } else {
      EXPECT_EQ(tensor.shape, (Shape{3, 4}));
      for (int i = 0; i < 12; ++i) {
        EXPECT_EQ(tensor.values[static_cast<std::size_t>(i)], static_cast<float>(i - 4) * 0.375F)
            << tensor.name;
      }
    }
  }
}

TEST(Safetensors, ConvertsSpecialHalves) {
  TemporaryFolder folder;
  const std::string halves{'\x01', '\x00', '\x00', '\x7c', '\x00', '\x80', '\xff', '\x7b', '\x01', '\x7c'};
  write_file(folder / "h", with_length(R"({"h":{"dtype":"F16","shape":[5],"data_offsets":[0,10]}})", halves));
  const std::vector<float> values = read_safetensors(folder / "h").at(0).values;
  EXPECT_EQ(values[0], 0x1p-24F);
  EXPECT_EQ(values[1], HUGE_VALF);
  EXPECT_TRUE(values[2] == 0.0F && std::signbit(values[2]));
  EXPECT_EQ(values[3], 65504.0F);
  EXPECT_TRUE(std::isnan(values[4]));
}

TEST(Safetensors, ReadsGoldenWeights) {
  const auto tensors = read_safetensors(PIPEOPTIM_SOURCE_DIR "/tests/golden/mlp.safetensors");
  ASSERT_EQ(tensors.size(), 6U);
  EXPECT_EQ(tensors[0].name, "0.weight");
  EXPECT_EQ(tensors[0].shape, (Shape{32, 784}));
}

TEST(Safetensors, TellsCutOffFiles) {
  expect_mentions(error_of(""), {"0 bytes"});
  expect_mentions(error_of("abc"), {"3 bytes"});
  const std::string whole =
      with_length(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", std::string(8, '\0'));
  expect_mentions(error_of(whole.substr(0, 20)), {"truncated", "20"});
  expect_mentions(error_of(whole.substr(0, whole.size() - 1)), {"'w'", "truncated", "only 7"});
  for (std::size_t size = 0; size < whole.size(); ++size) error_of(whole.substr(0, size));
}

TEST(Safetensors, TellsForeignHeaders) {
  expect_mentions(error_of("\x89PNG\r\n\x1a\n and so on"), {"not a safetensors file"});
  expect_mentions(error_of("{]", 0), {"JSON"});
  expect_mentions(error_of("[1, 2]", 0), {"JSON object"});
  expect_mentions(error_of(R"({"w": 3})", 0), {"'w'", "dtype"});
  expect_mentions(error_of(R"({"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), {"'w'"});
  expect_mentions(error_of(R"({"w":{"dtype":"F32","shape":[1.5],"data_offsets":[0,8]}})", 8), {"'w'"});
  expect_mentions(error_of(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8), {"'w'"});
  expect_mentions(error_of(R"({"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", 2),
                  {"'w'", "F8_E4M3"});
  expect_mentions(error_of(R"({"w":{"dtype":"F32","shape":[1,1,1,1,1,1],"data_offsets":[0,4]}})", 4),
                  {"'w'", "6"});
}

TEST(Safetensors, TellsBadOffsets) {
  const char* two = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"F32","shape":[1],"data_offsets":%s}})";
  const auto with = [&](const char* offsets) {
    std::string header = two;
    return header.replace(header.find("%s"), 2, offsets);
  };
  EXPECT_EQ(error_of(with("[8,13]"), 13).find("'a'"), std::string::npos);
  expect_mentions(error_of(with("[8,13]"), 13), {"'b'", "1 elements of F32"});
  expect_mentions(error_of(with("[4,8]"), 12), {"'b'", "overlap"});
  expect_mentions(error_of(with("[12,16]"), 16), {"'b'", "hole"});
  expect_mentions(error_of(with("[12,8]"), 12), {"'b'"});
  expect_mentions(error_of(with("[8,12]"), 13), {"1 bytes after"});
  expect_mentions(error_of(with("[8,18446744073709551615]"), 12), {"'b'"});
  expect_mentions(
      error_of(R"({"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0),
      {"'w'", "large"});
}

TEST(Safetensors, TellsDuplicates) {
  expect_mentions(error_of(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                           R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                           4),
                  {"'w'", "twice"});
}

TEST(Safetensors, LeavesNoPartialFile) {
  TemporaryFolder folder;
  const std::vector<float> value{1};
  const std::vector<TensorView> tensors{{"a", {1}, value}};
  expect_mentions(message_of<DataError>([&] { write_safetensors(folder / "no/such/f", tensors); }),
                  {"no/such/f", "cannot write"});
  expect_mentions(message_of<DataError>([&] { write_safetensors(folder.path(), tensors); }),
                  {"cannot write"});
  EXPECT_NO_THROW(write_safetensors("/dev/null", tensors));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  write_safetensors(folder / "f", tensors);
  write_safetensors(folder / "f", tensors);  // replaces
  std::filesystem::create_symlink(folder / "f", folder / "link");
  write_safetensors(folder / "link", tensors);
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  const auto entries = std::filesystem::directory_iterator(folder.path());
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 2);
  EXPECT_THROW(read_safetensors(folder.path()), DataError);
  EXPECT_THROW(read_safetensors(folder / "none"), DataError);
}

TEST(Safetensors, RejectsInconsistentTensors) {
  TemporaryFolder folder;
  const std::vector<float> value{1, 2};
  const std::vector<TensorView> twice{{"a", {2}, value}, {"a", {2}, value}}, wrong{{"a", {3}, value}};
  EXPECT_THROW(write_safetensors(folder / "f", twice), std::logic_error);
  EXPECT_THROW(write_safetensors(folder / "f", wrong), std::logic_error);
  EXPECT_FALSE(std::filesystem::exists(folder / "f"));
}

}  // namespace
}  // namespace pipeoptim::test
