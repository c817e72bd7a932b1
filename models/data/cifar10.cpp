#include "models/data/cifar10.h"

#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "models/data/byte_file.h"

namespace pipeoptim {

namespace {

constexpr std::size_t kSide = 32, kPlane = kSide * kSide, kRecord = 1 + 3 * kPlane;
constexpr std::size_t kLargestFile = 1'000'000 * kRecord;
constexpr int kClasses = 10;

void append_records(const std::filesystem::path& file, Dataset& dataset) {
  const std::vector<std::uint8_t> bytes = read_bytes(file, kLargestFile);
  if (bytes.empty() || bytes.size() % kRecord != 0) {
    fail_in_file(file, bytes.size() / kRecord * kRecord,
                 "whole CIFAR-10 records of " + std::to_string(kRecord) + " bytes",
                 std::to_string(bytes.size() % kRecord) + " bytes before the end");
  }
  const std::size_t records = bytes.size() / kRecord;
  std::size_t out = dataset.images.size();
  dataset.images.resize(out + records * 3 * kPlane);
  for (std::size_t record = 0; record < records; ++record) {
    const std::uint8_t* from = bytes.data() + record * kRecord;
    if (*from >= kClasses) {
      fail_in_file(file, record * kRecord, "a label from 0 to 9", std::to_string(*from));
    }
    dataset.labels.push_back(*from++);
    for (std::size_t pixel = 0; pixel < kPlane; ++pixel) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        dataset.images[out++] = from[channel * kPlane + pixel];
      }
    }
  }
}

}  // namespace

Dataset read_cifar10(const std::filesystem::path& folder, Split split) {
  const std::string first = split == Split::kTrain ? "data_batch_1.bin" : "test_batch.bin";
  std::filesystem::path place = folder;
  if (!std::filesystem::exists(place / first)) place /= "cifar-10-batches-bin";
  if (!std::filesystem::exists(place / first)) {
    throw DataError(
        (folder / first).string() +
        ": no such file, nor in the subfolder cifar-10-batches-bin; the binary version of CIFAR-10 is "
        "wanted (data_batch_1.bin ... data_batch_5.bin, test_batch.bin)");
  }
  Dataset dataset;
  dataset.name = "cifar10";
  dataset.height = dataset.width = kSide;
  dataset.channels = 3;
  dataset.classes = kClasses;
  dataset.mean = {0.4914F, 0.4822F, 0.4465F};
  dataset.deviation = {0.2470F, 0.2435F, 0.2616F};
  append_records(place / first, dataset);
  std::filesystem::path missing;
  for (int batch = 2; split == Split::kTrain && batch <= 5; ++batch) {
    const auto file = place / ("data_batch_" + std::to_string(batch) + ".bin");
    if (!std::filesystem::exists(file)) {
      missing = file;
    } else if (missing.empty()) {
      append_records(file, dataset);
    } else {
      throw DataError(missing.string() + ": no such file, but " + file.filename().string() + " is there");
    }
  }
  return dataset;
}

}  // namespace pipeoptim
