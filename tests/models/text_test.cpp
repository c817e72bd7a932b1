// Readers of texts.
#include "models/data/text.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "models/data/dataset.h"
#include "models/data/imdb.h"
#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

using Tokens = std::vector<std::int32_t>;

TEST(Text, CountsDistinctBytesInTheirOrder) {
  TemporaryFolder folder;
  write_file(folder / "input.txt", "banana bandana\xff nab");  // 19 bytes, the last one for the test split
  const Dataset data = read_text(folder.path(), Split::kTrain, 4);
  EXPECT_EQ(data.vocabulary, 6);  // space a b d n 0xff
  EXPECT_EQ(data.classes, 6);
  EXPECT_EQ(data.tokens, (Tokens{2, 1, 4, 1, 4, 1, 0, 2, 1, 4, 3, 1, 4, 1, 5, 0, 4, 1}));
  EXPECT_EQ(data.records(), 4);
  EXPECT_EQ(data.values(), 4);
  EXPECT_EQ(data.record_labels(), 4);
  EXPECT_EQ(read_text(folder / "input.txt", Split::kTrain, 4).tokens, data.tokens);
}

TEST(Text, KeepsTheSplitsApart) {
  TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 200; ++i) text += static_cast<char>('a' + i % 23);
  write_file(folder / "input.txt", text);
  const Dataset train = load_dataset("text", folder.path(), Split::kTrain, {.sequence_length = 6});
  const Dataset test = load_dataset("text", folder.path(), Split::kTest, {.sequence_length = 6});
  EXPECT_EQ(train.name, "text");
  EXPECT_EQ(train.vocabulary, 23);
  EXPECT_EQ(test.vocabulary, 23) << "the test split alone has 20";
  ASSERT_EQ(train.tokens.size(), 180U);
  ASSERT_EQ(test.tokens.size(), 20U);
  for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(test.tokens[i], static_cast<std::int32_t>((180 + i) % 23));
  EXPECT_EQ(train.records(), 29);
  EXPECT_EQ(test.records(), 3);
}

TEST(Text, KeepsTheFirstRecords) {
  TemporaryFolder folder;
  write_file(folder / "input.txt", std::string(100, 'a') + std::string(100, 'b'));
  Dataset data = read_text(folder.path(), Split::kTrain, 6);
  keep_first(data, 3);
  EXPECT_EQ(data.records(), 3);
  EXPECT_EQ(data.tokens.size(), 19U) << "with the last label";
  keep_first(data, 5);
  EXPECT_EQ(data.records(), 3);
}

TEST(Text, TellsWhatIsWrong) {
  TemporaryFolder folder;
  const auto error = [&](std::int64_t length) {
    return message_of<DataError>(
        [&] { load_dataset("text", folder.path(), Split::kTest, {.sequence_length = length}); });
  };
  expect_mentions(error(4), {"input.txt", "no such file", "--data-dir"});
  write_file(folder / "input.txt", std::string(60, 'x'));
  expect_mentions(error(6), {"input.txt", "6 bytes", "test split", "--sequence-length 6"});
  EXPECT_EQ(load_dataset("text", folder.path(), Split::kTest, {.sequence_length = 5}).records(), 1);
  write_file(folder / "input.txt", "");
  expect_mentions(error(4), {"input.txt", "0 bytes"});
  EXPECT_THROW(load_dataset("text", folder.path(), Split::kTest, {.sequence_length = 0}),
               std::invalid_argument);
}

TEST(Text, ReadsTinyShakespeare) {
  if (!std::filesystem::exists(shared_data() / "tinyshakespeare")) GTEST_SKIP() << "no tinyshakespeare";
  const Dataset train = load_dataset("tinyshakespeare", shared_data(), Split::kTrain);
  const Dataset test = load_dataset("tinyshakespeare", shared_data(), Split::kTest);
  EXPECT_EQ(train.vocabulary, 65);
  EXPECT_EQ(train.tokens.size(), 1003855U);  // nine tenths of 1115394, rounded up
  EXPECT_EQ(test.tokens.size(), 111539U);
  // "First Citizen": uppercase letters begin at token 13, lowercase ones at 39.
  EXPECT_EQ(Tokens(train.tokens.begin(), train.tokens.begin() + 5), (Tokens{18, 47, 56, 57, 58}));
}

TEST(Words, AreLowerCaseRunsWithoutMarkup) {
  EXPECT_EQ(words_of("It's  GREAT!<br /><br />9/10, caf\xc3\xa9 < 5"),
            (std::vector<std::string>{"it's", "great", "9", "10", "caf\xc3\xa9", "5"}));
  EXPECT_TRUE(words_of("<p> ... </p>").empty());
}

// Reviews whose order by name is not the order of writing.
const std::pair<std::string, std::string> kReviews[] = {{"train/pos/1_9.txt", "good good film"},
                                                        {"train/pos/0_8.txt", "a good one, good"},
                                                        {"train/neg/0_2.txt", "bad film, bad end"},
                                                        {"test/pos/7_10.txt", "good film indeed"},
                                                        {"test/neg/7_1.txt", "bad"},
                                                        {"train/unsup/0_0.txt", "film film film film film"}};

void write_reviews(const std::filesystem::path& root) {
  for (const auto& [name, text] : kReviews) {
    std::filesystem::create_directories((root / name).parent_path());
    write_file(root / name, text);
  }
}

// good 4, bad 2, film 2, then a, end, one with 1 each: tokens 2 to 7.
void expect_reviews(const std::filesystem::path& place) {
  const TextOptions options{.sequence_length = 4, .vocabulary = 6};
  const Dataset train = load_dataset("imdb", place, Split::kTrain, options);
  EXPECT_EQ(train.vocabulary, 6);
  EXPECT_EQ(train.labels, (std::vector<std::uint8_t>{0, 1, 1}));
  EXPECT_EQ(train.tokens, (Tokens{3, 4, 3, 1,     // bad film bad end
                                  5, 2, 1, 2,     // a good one good
                                  0, 2, 2, 4}));  // good good film
  const Dataset test = load_dataset("imdb", place, Split::kTest, options);
  EXPECT_EQ(test.labels, (std::vector<std::uint8_t>{0, 1}));
  EXPECT_EQ(test.tokens, (Tokens{0, 0, 0, 3, 0, 2, 4, 1}));
  const Dataset cut = load_dataset("imdb", place, Split::kTrain, {.sequence_length = 2, .vocabulary = 6});
  EXPECT_EQ(cut.tokens, (Tokens{3, 1, 1, 2, 2, 4})) << "the last words";
}

TEST(Imdb, ReadsFolders) {
  TemporaryFolder folder;
  write_reviews(folder / "aclImdb");
  expect_reviews(folder.path());
  expect_reviews(folder / "aclImdb");
  Dataset data = load_dataset("imdb", folder.path(), Split::kTrain, {.sequence_length = 4});
  keep_first(data, 2);
  EXPECT_EQ(data.records(), 2);
  EXPECT_EQ(data.tokens.size(), 8U);
}

std::string tar_entry(const std::string& name, const std::string& content) {
  std::string block(512, '\0');
  name.copy(block.data(), 100);
  std::snprintf(block.data() + 124, 12, "%011zo", content.size());
  block[156] = '0';
  return block + content + std::string((512 - content.size() % 512) % 512, '\0');
}

void write_gzip(const std::filesystem::path& file, const std::string& bytes) {
  const gzFile out = gzopen(file.c_str(), "wb");
  gzwrite(out, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(out);
}

TEST(Imdb, ReadsTheArchive) {
  TemporaryFolder folder;
  std::string tar;
  for (const auto& [name, text] : kReviews) tar += tar_entry("aclImdb/" + name, text);
  write_gzip(folder / "aclImdb_v1.tar.gz", tar + std::string(1024, '\0'));
  expect_reviews(folder.path());
  expect_reviews(folder / "aclImdb_v1.tar.gz");
}

TEST(Imdb, TellsWhatIsWrong) {
  TemporaryFolder folder;
  const auto error = [&] {
    return message_of<DataError>([&] { load_dataset("imdb", folder.path(), Split::kTrain); });
  };
  expect_mentions(error(), {"train and test", "aclImdb*.tar.gz"});
  write_gzip(folder / "aclImdb.tar.gz", tar_entry("aclImdb/train/pos/0_9.txt", "good"));
  expect_mentions(error(), {"no reviews train/neg"});
  std::string cut = tar_entry("aclImdb/train/pos/0_9.txt", "good");
  cut.resize(514);
  write_gzip(folder / "aclImdb.tar.gz", cut);
  expect_mentions(error(), {"aclImdb.tar.gz", "size of a tar entry", "00000000004", "byte 124"});
  EXPECT_THROW(load_dataset("imdb", folder.path(), Split::kTrain, {.vocabulary = 2}), std::invalid_argument);
}

TEST(Imdb, ReadsTheReviews) {
  if (!std::filesystem::exists(shared_data() / "imdb")) GTEST_SKIP() << "no imdb";
  const Dataset test = load_dataset("imdb", shared_data(), Split::kTest, {.sequence_length = 64});
  EXPECT_EQ(test.records(), 25000);
  EXPECT_EQ(std::count(test.labels.begin(), test.labels.end(), 1), 12500);
  EXPECT_EQ(test.tokens.size(), 25000U * 64);
  EXPECT_EQ(*std::max_element(test.tokens.begin(), test.tokens.end()), 19999);
  // "the" is the most frequent word, by far.
  EXPECT_GT(std::count(test.tokens.begin(), test.tokens.end(), 2), 64000);
}

TEST(LoadDataset, KnowsWhatEachNameHolds) {
  EXPECT_EQ(dataset_kind("cifar10"), DataKind::kImages);
  EXPECT_EQ(dataset_kind("imdb"), DataKind::kTexts);
  EXPECT_EQ(dataset_kind("tinyshakespeare"), DataKind::kRunningText);
  TemporaryFolder folder;
  write_file(folder / "a.txt", "abc");
  expect_mentions(message_of<DataError>([&] { load_dataset("cifar10", folder / "a.txt", Split::kTest); }),
                  {"a.txt", "no such data folder"});
}

}  // namespace
}  // namespace pipeoptim::test
