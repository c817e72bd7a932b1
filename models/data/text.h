// Running text, one token a byte.
#pragma once

#include <cstdint>
#include <filesystem>

#include "models/data/dataset.h"

namespace pipeoptim {

// The vocabulary is the distinct bytes of the whole file, in their order; the first nine tenths of it are the
// training split, the rest is the test split. Record r holds the tokens from r * sequence_length on, and is
// labelled with those one further. `place` is a file, plain or gzip, or a folder with an input.txt. Throws
// DataError.
Dataset read_text(const std::filesystem::path& place, Split split, std::int64_t sequence_length);

}  // namespace pipeoptim
