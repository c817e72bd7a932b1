// Images that need no file: every class has a smooth pattern; a record is its pattern shifted a little, with
// noise.
#pragma once

#include <cstdint>

#include "models/data/dataset.h"

namespace pipeoptim {

struct SyntheticOptions {
  std::int64_t records = 8192;
  std::int64_t height = 28, width = 28, channels = 1;
  int classes = 10;
  int noise = 64;  // each pixel is off by up to this much, of 255
  std::uint64_t seed = 0;
};

// The same bytes everywhere for the same options. The splits share the patterns, not the records.
Dataset make_synthetic(const SyntheticOptions& options, Split split);

}  // namespace pipeoptim
