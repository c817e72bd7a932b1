// The IDX format of MNIST and its relatives, gzip or plain.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "models/data/dataset.h"

namespace pipeoptim {

// Unsigned bytes with up to three extents (magic 0x00000801 to 0x00000803, big-endian).
struct IdxArray {
  std::vector<std::int64_t> extents;
  std::vector<std::uint8_t> values;
};

// Throws DataError unless the file is an IDX file of bytes with `rank` extents and exactly its content.
IdxArray read_idx(const std::filesystem::path& file, int rank);

// One split of images and labels in a folder: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-...,
// each with or without .gz. Mean and deviation are the caller's.
Dataset read_idx_pair(const std::filesystem::path& folder, Split split, int classes);

}  // namespace pipeoptim
