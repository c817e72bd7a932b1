#include "models/data/dataset.h"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "kernels/runtime/error.h"
#include "kernels/runtime/names.h"
#include "models/data/cifar10.h"
#include "models/data/idx.h"
#include "models/data/imdb.h"
#include "models/data/synthetic.h"
#include "models/data/text.h"

namespace pipeoptim {

namespace {

const std::array<std::string, 7> kNames{"fashion-mnist",   "mnist", "cifar10", "synthetic",
                                        "tinyshakespeare", "text",  "imdb"};
constexpr const char* kDebianFolder = "/usr/share/datasets/fashion-mnist";

std::filesystem::path find_folder(const std::string& name, const std::string& asked) {
  std::string folder = asked;
  if (folder.empty()) {
    const char* variable = std::getenv("PIPEOPTIM_DATA");  // NOLINT(concurrency-mt-unsafe): read only
    if (variable != nullptr) folder = variable;
  }
  if (folder.empty() && name == "fashion-mnist") {
    if (!std::filesystem::is_directory(kDebianFolder)) {
      throw DataError(
          std::string("Fashion-MNIST is not at ") + kDebianFolder +
          ": install the Debian package dataset-fashion-mnist (apt install dataset-fashion-mnist), or "
          "name a folder with --data-dir or PIPEOPTIM_DATA");
    }
    folder = kDebianFolder;
  }
  if (folder.empty()) {
    throw std::invalid_argument("data '" + name +
                                "' needs a folder: --data-dir, or the variable PIPEOPTIM_DATA");
  }
  if (dataset_kind(name) != DataKind::kImages && std::filesystem::is_regular_file(folder)) return folder;
  if (!std::filesystem::is_directory(folder)) throw DataError(folder + ": no such data folder");
  // One folder may hold several data sets, each in a folder of its own name.
  const std::filesystem::path inner = std::filesystem::path(folder) / name;
  return std::filesystem::is_directory(inner) ? inner : std::filesystem::path(folder);
}

}  // namespace

std::span<const std::string> dataset_names() { return kNames; }

DataKind dataset_kind(const std::string& name) {
  if (name == "tinyshakespeare" || name == "text") return DataKind::kRunningText;
  return name == "imdb" ? DataKind::kTexts : DataKind::kImages;
}

void keep_first(Dataset& dataset, std::int64_t records) {
  if (records >= dataset.records()) return;
  const auto kept = static_cast<std::size_t>(records);
  const auto values = kept * static_cast<std::size_t>(dataset.values());
  if (dataset.kind != DataKind::kRunningText) dataset.labels.resize(kept);
  if (dataset.kind == DataKind::kImages) dataset.images.resize(values);
  if (dataset.kind == DataKind::kTexts) dataset.tokens.resize(values);
  if (dataset.kind == DataKind::kRunningText) dataset.tokens.resize(values + 1);  // the last label
}

Dataset load_dataset(const std::string& name, const std::string& folder, Split split,
                     const TextOptions& text) {
  if (name == "synthetic") {
    SyntheticOptions options;
    if (split == Split::kTest) options.records = 2048;
    return make_synthetic(options, split);
  }
  if (dataset_kind(name) != DataKind::kImages) {
    if (text.sequence_length < 1 || text.vocabulary < 3) {
      throw std::invalid_argument("data '" + name + "' needs sequences of at least one token, of at least 3");
    }
    const std::filesystem::path place = find_folder(name, folder);
    if (name == "imdb") return read_imdb(place, split, {text.sequence_length, text.vocabulary});
    Dataset dataset = read_text(place, split, text.sequence_length);
    dataset.name = name;
    return dataset;
  }
  if (name == "cifar10") return read_cifar10(find_folder(name, folder), split);
  if (name != "fashion-mnist" && name != "mnist") {
    throw std::invalid_argument(unknown_name("data set", name, kNames));
  }
  const std::filesystem::path place = find_folder(name, folder);
  Dataset dataset = read_idx_pair(place, split, 10);
  if (dataset.height != kMnistSide || dataset.width != kMnistSide) {
    const std::string side = std::to_string(kMnistSide);
    throw DataError(place.string() + ": images of " + name + " have " + side + " x " + side +
                    " pixels, these " + std::to_string(dataset.height) + " x " +
                    std::to_string(dataset.width));
  }
  dataset.name = name;
  dataset.mean = {name == "mnist" ? 0.1307F : 0.2860F};
  dataset.deviation = {name == "mnist" ? 0.3081F : 0.3530F};
  return dataset;
}

}  // namespace pipeoptim
