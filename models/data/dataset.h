// Labelled images as they come from a file: bytes, channels last, with what is needed to normalise them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace pipeoptim {

enum class Split { kTrain, kTest };

struct Dataset {
  std::string name;
  std::int64_t height = 0, width = 0, channels = 0;
  int classes = 0;
  std::vector<std::uint8_t> images;  // records x height x width x channels
  std::vector<std::uint8_t> labels;  // one a record, each below `classes`
  std::vector<float> mean;           // per channel, of pixels scaled to [0,1]
  std::vector<float> deviation;      // per channel, likewise

  std::int64_t records() const { return static_cast<std::int64_t>(labels.size()); }
  std::int64_t pixels() const { return height * width * channels; }
};

// The names that load_dataset takes.
std::span<const std::string> dataset_names();

// Reads one split of "fashion-mnist", "mnist", "cifar10" or "synthetic" (which reads nothing).
// An empty folder means $PIPEOPTIM_DATA, or for Fashion-MNIST the folder of the Debian package
// dataset-fashion-mnist. Throws std::invalid_argument for an unknown name (with the nearest one), DataError
// for files that are missing, cut off, corrupt or foreign: which file, what was expected, what was found,
// where.
Dataset load_dataset(const std::string& name, const std::string& folder, Split split);

}  // namespace pipeoptim
