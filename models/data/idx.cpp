#include "models/data/idx.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <utility>

#include "kernels/runtime/error.h"
#include "models/data/byte_file.h"

namespace pipeoptim {

namespace {

constexpr std::size_t kLargestFile = std::size_t{1} << 30;

std::uint32_t big_endian(const std::uint8_t* bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 |
         bytes[3];
}

std::string hex(std::uint32_t value) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%08x", value);
  return text.data();
}

// The file itself or its compressed form; the plain one first.
std::filesystem::path plain_or_gzip(const std::filesystem::path& file) {
  if (std::filesystem::exists(file)) return file;
  std::filesystem::path compressed = file;
  compressed += ".gz";
  if (std::filesystem::exists(compressed)) return compressed;
  throw DataError(file.string() + ": no such file, nor " + compressed.filename().string() +
                  "; Fashion-MNIST comes with the Debian package dataset-fashion-mnist (apt install "
                  "dataset-fashion-mnist), other folders are named with --data-dir or PIPEOPTIM_DATA");
}

}  // namespace

IdxArray read_idx(const std::filesystem::path& file, int rank) {
  std::vector<std::uint8_t> bytes = read_bytes(file, kLargestFile);
  const std::uint32_t magic = 0x0800U + static_cast<std::uint32_t>(rank);
  if (bytes.size() >= 4 && big_endian(bytes.data()) != magic) {
    fail_in_file(file, 0, "the IDX magic number " + hex(magic), hex(big_endian(bytes.data())));
  }
  const auto header = static_cast<std::size_t>(4 + 4 * rank);
  if (bytes.size() < header) {
    fail_in_file(file, bytes.size(), "an IDX header of " + std::to_string(header) + " bytes",
                 "the end of the file");
  }
  IdxArray array;
  std::size_t size = 1;
  for (int axis = 0; axis < rank; ++axis) {
    const std::size_t at = static_cast<std::size_t>(4 + 4 * axis);
    const std::uint32_t extent = big_endian(bytes.data() + at);
    if (extent == 0 || extent > kLargestFile / size) {
      fail_in_file(file, at, "a plausible extent", std::to_string(extent));
    }
    size *= extent;
    array.extents.push_back(extent);
  }
  if (bytes.size() != header + size) {
    fail_in_file(
        file, std::min(bytes.size(), header + size), std::to_string(size) + " bytes after the header",
        bytes.size() < header + size ? std::to_string(bytes.size() - header) + ", the file is truncated"
                                     : "more");
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(header));
  array.values = std::move(bytes);
  return array;
}

Dataset read_idx_pair(const std::filesystem::path& folder, Split split, int classes) {
  const std::string prefix = split == Split::kTrain ? "train" : "t10k";
  const auto image_file = plain_or_gzip(folder / (prefix + "-images-idx3-ubyte"));
  const auto label_file = plain_or_gzip(folder / (prefix + "-labels-idx1-ubyte"));
  IdxArray images = read_idx(image_file, 3);
  IdxArray labels = read_idx(label_file, 1);
  if (images.extents[0] != labels.extents[0]) {
    fail_in_file(label_file, 4,
                 std::to_string(images.extents[0]) + " labels, one for each image of " +
                     image_file.filename().string(),
                 std::to_string(labels.extents[0]));
  }
  for (std::size_t i = 0; i < labels.values.size(); ++i) {
    if (labels.values[i] >= classes) {
      fail_in_file(label_file, 8 + i, "a label from 0 to " + std::to_string(classes - 1),
                   std::to_string(labels.values[i]));
    }
  }
  Dataset dataset;
  dataset.height = images.extents[1];
  dataset.width = images.extents[2];
  dataset.channels = 1;
  dataset.classes = classes;
  dataset.images = std::move(images.values);
  dataset.labels = std::move(labels.values);
  return dataset;
}

}  // namespace pipeoptim
