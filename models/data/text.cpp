#include "models/data/text.h"

#include <array>
#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "models/data/byte_file.h"

namespace pipeoptim {

namespace {

constexpr std::size_t kLargestFile = std::size_t{1} << 30;

}  // namespace

Dataset read_text(const std::filesystem::path& place, Split split, std::int64_t sequence_length) {
  const bool folder = std::filesystem::is_directory(place);
  const std::filesystem::path file = folder ? place / "input.txt" : place;
  if (!std::filesystem::exists(file)) {
    throw DataError(file.string() +
                    ": no such file; --data-dir names a text file, or a folder with input.txt");
  }
  const std::vector<std::uint8_t> bytes = read_bytes(file, kLargestFile);
  if (bytes.size() > kLargestFile) throw DataError(file.string() + ": more than 1 GiB of text");
  std::array<std::int32_t, 256> token_of{};
  for (const std::uint8_t byte : bytes) token_of[byte] = 1;
  Dataset dataset;
  dataset.kind = DataKind::kRunningText;
  dataset.sequence_length = sequence_length;
  for (std::int32_t& token : token_of)
    token = token == 1 ? static_cast<std::int32_t>(dataset.vocabulary++) : -1;
  dataset.classes = static_cast<int>(dataset.vocabulary);

  const std::size_t border = bytes.size() - bytes.size() / 10;
  const std::size_t begin = split == Split::kTrain ? 0 : border;
  const std::size_t end = split == Split::kTrain ? border : bytes.size();
  dataset.tokens.reserve(end - begin);
  for (std::size_t i = begin; i < end; ++i) dataset.tokens.push_back(token_of[bytes[i]]);
  if (dataset.records() < 1) {
    throw DataError(file.string() + ": " + std::to_string(end - begin) + " bytes in the " +
                    (split == Split::kTrain ? "training" : "test") +
                    " split are too few for --sequence-length " + std::to_string(sequence_length));
  }
  return dataset;
}

}  // namespace pipeoptim
