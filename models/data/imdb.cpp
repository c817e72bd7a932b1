#include "models/data/imdb.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "kernels/runtime/error.h"
#include "models/data/byte_file.h"

namespace pipeoptim {

namespace {

constexpr std::size_t kLargestFile = std::size_t{1} << 30;
constexpr std::int32_t kPadding = 0, kUnknown = 1, kFirstWord = 2;

// Texts by name, so that their order does not depend on the folder's or the archive's.
using Texts = std::map<std::string, std::string>;

struct Reviews {
  Texts negative, positive;
};

// "train/pos/123_9.txt" at the end of a path goes to the training split's positive ones; others are passed
// over.
Texts* place_of(std::string_view path, std::string_view split, Reviews& reviews) {
  if (!path.ends_with(".txt")) return nullptr;
  for (auto& [folder, texts] : {std::pair{"neg", &reviews.negative}, std::pair{"pos", &reviews.positive}}) {
    const std::string inside = std::string(split) + "/" + folder + "/";
    const std::size_t at = path.rfind('/');
    if (at == std::string_view::npos || at + 1 < inside.size()) continue;
    if (path.substr(at + 1 - inside.size(), inside.size()) == inside) return texts;
  }
  return nullptr;
}

void read_folder(const std::filesystem::path& root, std::string_view split, Reviews& reviews) {
  for (const char* folder : {"neg", "pos"}) {
    const std::filesystem::path place = root / split / folder;
    if (!std::filesystem::is_directory(place)) throw DataError(place.string() + ": no such folder");
    for (const auto& entry : std::filesystem::directory_iterator(place)) {
      Texts* const texts = place_of(entry.path().generic_string(), split, reviews);
      if (texts == nullptr) continue;
      const std::vector<std::uint8_t> bytes = read_bytes(entry.path(), kLargestFile);
      (*texts)[entry.path().filename().string()] = {bytes.begin(), bytes.end()};
    }
  }
}

// A tar archive's headers: 512 bytes each, with the name at 0, the size in octal at 124, the kind at 156 and,
// where the name is long, its first part at 345. The content follows, in whole blocks.
void read_archive(const std::filesystem::path& file, std::string_view split, Reviews& reviews) {
  constexpr std::size_t kBlock = 512;
  const std::vector<std::uint8_t> bytes = read_bytes(file, kLargestFile);
  const auto field = [&](std::size_t at, std::size_t length) {
    const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    return std::string(begin, std::find(begin, begin + static_cast<std::ptrdiff_t>(length), std::uint8_t{0}));
  };
  for (std::size_t at = 0; at + kBlock <= bytes.size() && bytes[at] != 0;) {
    const std::string size_text = field(at + 124, 12), first = field(at + 345, 155);
    std::size_t size = 0;
    const auto parsed = std::from_chars(size_text.data(), size_text.data() + size_text.size(), size, 8);
    if (parsed.ec != std::errc() || size > bytes.size() - at - kBlock) {
      fail_in_file(file, at + 124, "the size of a tar entry within the archive", "'" + size_text + "'");
    }
    const std::string name = (first.empty() ? "" : first + "/") + field(at, 100);
    const bool regular = bytes[at + 156] == '0' || bytes[at + 156] == 0;
    if (Texts* const texts = regular ? place_of(name, split, reviews) : nullptr) {
      const auto begin = bytes.begin() + static_cast<std::ptrdiff_t>(at + kBlock);
      (*texts)[name] = {begin, begin + static_cast<std::ptrdiff_t>(size)};
    }
    at += kBlock + (size + kBlock - 1) / kBlock * kBlock;
  }
}

std::optional<std::filesystem::path> archive_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("aclImdb") && name.ends_with(".tar.gz")) found.push_back(entry.path());
  }
  if (found.empty()) return {};
  return *std::min_element(found.begin(), found.end());
}

Reviews read_split(const std::filesystem::path& place, Split split) {
  const std::string_view name = split == Split::kTrain ? "train" : "test";
  Reviews reviews;
  const auto holds_reviews = [](const std::filesystem::path& folder) {
    return std::filesystem::is_directory(folder / "train") && std::filesystem::is_directory(folder / "test");
  };
  if (!std::filesystem::is_directory(place)) {
    read_archive(place, name, reviews);
  } else if (holds_reviews(place)) {
    read_folder(place, name, reviews);
  } else if (holds_reviews(place / "aclImdb")) {
    read_folder(place / "aclImdb", name, reviews);
  } else if (const auto archive = archive_in(place)) {
    read_archive(*archive, name, reviews);
  } else {
    throw DataError(place.string() +
                    ": neither folders train and test, nor aclImdb with them, nor a file aclImdb*.tar.gz");
  }
  if (reviews.negative.empty() || reviews.positive.empty()) {
    throw DataError(place.string() + ": no reviews " + std::string(name) + "/" +
                    (reviews.negative.empty() ? "neg" : "pos") + "/*.txt");
  }
  return reviews;
}

using Vocabulary = std::unordered_map<std::string, std::int32_t>;

// The most frequent words; of equally frequent ones the first by name.
Vocabulary count_words(const Reviews& reviews, std::int64_t tokens) {
  std::unordered_map<std::string, std::int64_t> counts;
  for (const Texts* texts : {&reviews.negative, &reviews.positive}) {
    for (const auto& [name, text] : *texts) {
      for (std::string& word : words_of(text)) ++counts[std::move(word)];
    }
  }
  std::vector<std::pair<std::string, std::int64_t>> order(counts.begin(), counts.end());
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  Vocabulary vocabulary;
  for (const auto& [word, count] : order) {
    const auto token = kFirstWord + static_cast<std::int32_t>(vocabulary.size());
    if (token >= tokens) break;
    vocabulary.emplace(word, token);
  }
  return vocabulary;
}

void append_review(const std::string& text, const Vocabulary& vocabulary, Dataset& dataset) {
  const std::vector<std::string> words = words_of(text);
  const auto length = static_cast<std::size_t>(dataset.sequence_length);
  const std::size_t kept = std::min(words.size(), length);
  dataset.tokens.insert(dataset.tokens.end(), length - kept, kPadding);
  for (std::size_t i = words.size() - kept; i < words.size(); ++i) {
    const auto found = vocabulary.find(words[i]);
    dataset.tokens.push_back(found == vocabulary.end() ? kUnknown : found->second);
  }
}

}  // namespace

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  bool markup = false;
  const auto finish = [&] {
    if (!word.empty()) words.push_back(std::exchange(word, {}));
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool upper = c >= 'A' && c <= 'Z';
    const bool part = upper || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '\'' ||
                      static_cast<unsigned char>(c) >= 0x80;
    // A bracket that is never closed is no markup.
    if (c == '<') markup = text.find('>', i) != std::string_view::npos;
    if (markup || !part) {
      finish();
    } else {
      word += upper ? static_cast<char>(c - 'A' + 'a') : c;
    }
    if (c == '>') markup = false;
  }
  finish();
  return words;
}

Dataset read_imdb(const std::filesystem::path& place, Split split, const ReviewOptions& options) {
  const Reviews training = read_split(place, Split::kTrain);
  const Vocabulary vocabulary = count_words(training, options.vocabulary);
  const Reviews wanted = split == Split::kTrain ? training : read_split(place, split);
  Dataset dataset;
  dataset.name = "imdb";
  dataset.kind = DataKind::kTexts;
  dataset.classes = 2;
  dataset.sequence_length = options.sequence_length;
  dataset.vocabulary = options.vocabulary;
  auto negative = wanted.negative.begin(), positive = wanted.positive.begin();
  while (negative != wanted.negative.end() || positive != wanted.positive.end()) {
    if (negative != wanted.negative.end()) {
      append_review((negative++)->second, vocabulary, dataset);
      dataset.labels.push_back(0);
    }
    if (positive != wanted.positive.end()) {
      append_review((positive++)->second, vocabulary, dataset);
      dataset.labels.push_back(1);
    }
  }
  return dataset;
}

}  // namespace pipeoptim
