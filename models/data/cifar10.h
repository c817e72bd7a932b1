// CIFAR-10 in its binary version: records of one label byte and 3 x 1024 bytes (red, green, blue planes).
#pragma once

#include <filesystem>

#include "models/data/dataset.h"

namespace pipeoptim {

// Reads data_batch_1.bin, data_batch_2.bin, ... up to 5 as far as they exist (at least the first, and none
// behind a gap), or test_batch.bin, from the folder or its subfolder cifar-10-batches-bin. Throws DataError.
Dataset read_cifar10(const std::filesystem::path& folder, Split split);

}  // namespace pipeoptim
