// The safetensors file format: a JSON header with names, shapes and offsets, then the values.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "layers/tensor.h"

namespace pipeoptim {

struct StoredTensor {
  std::string name;
  Shape shape;
  std::vector<float> values;
};

struct TensorView {
  std::string name;
  Shape shape;
  std::span<const float> values;
};

// All tensors in the order of their data. F64, F32, F16, BF16, I64 and I32 become float. Throws DataError
// that names the file, and the tensor where there is one, for anything that the format forbids: a header that
// is cut off or no JSON, duplicate names, offsets that overlap, leave holes, pass the end or disagree with
// the shape.
std::vector<StoredTensor> read_safetensors(const std::filesystem::path& file);

// Writes F32 with metadata {"format": "pt"} and the given entries. The file appears whole or not at all:
// written beside its place, then renamed. Throws DataError where the place cannot be written.
void write_safetensors(const std::filesystem::path& file, std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace pipeoptim
