// Labelled records as they come from a file: images as bytes, channels last, with what is needed to normalise
// them; or sequences of tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "models/data_kind.h"

namespace pipeoptim {

enum class Split { kTrain, kTest };

struct Dataset {
  std::string name;
  DataKind kind = DataKind::kImages;
  int classes = 0;
  std::vector<std::uint8_t> labels;  // one a record, each below `classes`; none of running text

  // Images.
  std::int64_t height = 0, width = 0, channels = 0;
  std::vector<std::uint8_t> images;  // records x height x width x channels
  std::vector<float> mean;           // per channel, of pixels scaled to [0,1]
  std::vector<float> deviation;      // per channel, likewise

  // Texts: records x sequence_length tokens. Running text: all of it; record r begins at r * sequence_length,
  // and its labels are the tokens one further.
  std::int64_t sequence_length = 0;
  std::int64_t vocabulary = 0;
  std::vector<std::int32_t> tokens;  // each from 0 to below `vocabulary`

  std::int64_t records() const {
    if (kind != DataKind::kRunningText) return static_cast<std::int64_t>(labels.size());
    return tokens.empty() ? 0 : (static_cast<std::int64_t>(tokens.size()) - 1) / sequence_length;
  }
  // Values of a record, and its labels.
  std::int64_t values() const {
    return kind == DataKind::kImages ? height * width * channels : sequence_length;
  }
  std::int64_t record_labels() const { return kind == DataKind::kRunningText ? sequence_length : 1; }
};

// Leaves only the first records.
void keep_first(Dataset& dataset, std::int64_t records);

inline constexpr std::int64_t kMnistSide = 28;  // pixels, of fashion-mnist and mnist

// The names that load_dataset takes.
std::span<const std::string> dataset_names();
// What a known one holds.
DataKind dataset_kind(const std::string& name);

struct TextOptions {
  std::int64_t sequence_length = 128;  // tokens of a record
  std::int64_t vocabulary = 20000;     // imdb: words that are told apart; running text counts its own
};

// Reads one split of "fashion-mnist", "mnist", "cifar10", "synthetic" (which reads nothing),
// "tinyshakespeare", "text" (any file, or the input.txt of a folder) or "imdb". An empty folder means
// $PIPEOPTIM_DATA, or for Fashion-MNIST the folder of the Debian package dataset-fashion-mnist. Throws
// std::invalid_argument for an unknown name (with the nearest one) and impossible numbers, DataError for
// files that are missing, cut off, corrupt or foreign: which file, what was expected, what was found, where.
Dataset load_dataset(const std::string& name, const std::string& folder, Split split,
                     const TextOptions& text = {});

}  // namespace pipeoptim
