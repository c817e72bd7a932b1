// The weights of an engine: first values, and safetensors files in both directions.
#include <algorithm>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/error.h"
#include "models/init.h"
#include "models/safetensors.h"
#include "pipeline/app/setup.h"

namespace pipeoptim::app {
namespace {

// "a, b, c and 4 more"
std::string some_of(const std::vector<std::string>& items) {
  constexpr std::size_t kShown = 3;
  std::string text;
  for (std::size_t i = 0; i < items.size() && i < kShown; ++i) text += (i ? ", " : "") + items[i];
  if (items.size() > kShown) text += " and " + std::to_string(items.size() - kShown) + " more";
  return text;
}

// PyTorch counts the mini-batches of batch norms; nothing here reads it.
bool ignored(const std::string& name) { return name.ends_with("num_batches_tracked"); }

struct Faults {
  std::vector<std::string> missing, unexpected, misshapen;

  bool none() const { return missing.empty() && unexpected.empty() && misshapen.empty(); }
  std::string describe() const {
    std::string text;
    if (!missing.empty()) text += "; missing: " + some_of(missing);
    if (!unexpected.empty()) text += "; unexpected: " + some_of(unexpected);
    if (!misshapen.empty()) text += "; wrong shape: " + some_of(misshapen);
    return text;
  }
};

Faults compare(const std::vector<ModelTensor>& wanted,
               const std::map<std::string, const StoredTensor*>& found) {
  Faults faults;
  std::map<std::string, const ModelTensor*> known;
  for (const ModelTensor& tensor : wanted) {
    known[tensor.name] = &tensor;
    const auto at = found.find(tensor.name);
    if (at == found.end()) {
      faults.missing.push_back(tensor.name);
    } else if (at->second->shape != tensor.shape) {
      faults.misshapen.push_back(tensor.name + " is " + at->second->shape.to_string() + " in the file, " +
                                 tensor.shape.to_string() + " in the model");
    }
  }
  for (const auto& [name, stored] : found) {
    if (!known.contains(name) && !ignored(name)) faults.unexpected.push_back(name);
  }
  return faults;
}

// In pieces: the largest tensor can be a good part of all that the training needs.
void initialise(Engine& engine, const ModelTensor& tensor, std::uint64_t seed, std::uint64_t parameter) {
  constexpr std::int64_t kPiece = 1 << 18;
  const std::int64_t rows = tensor.shape.first(), row = tensor.shape.elements() / rows;
  const std::int64_t step = std::max<std::int64_t>(1, kPiece / row);
  for (std::int64_t first = 0; first < rows; first += step) {
    const Shape piece{std::min(step, rows - first) * row};
    engine.write_rows(
        tensor.name, first,
        initial_values(tensor.initializer, piece, seed, parameter, static_cast<std::uint64_t>(first * row)));
  }
}

std::vector<float> gather_values(ProcessGroup& processes, std::span<const float> mine) {
  std::vector<float> all;
  for (const ProcessGroup::Bytes& bytes : processes.gather(std::as_bytes(mine))) {
    const std::size_t before = all.size();
    all.resize(before + bytes.size() / sizeof(float));
    if (!bytes.empty()) std::memcpy(all.data() + before, bytes.data(), bytes.size());
  }
  return all;
}

}  // namespace

void initialise(Engine& engine, std::uint64_t seed) {
  std::uint64_t parameter = 0;
  for (const ModelTensor& tensor : engine.tensors()) {
    if (engine.here(tensor.stage)) initialise(engine, tensor, seed, parameter);
    if (tensor.trained) ++parameter;
  }
}

void load_weights(Engine& engine, const std::string& path) {
  const std::vector<StoredTensor> stored = read_safetensors(path);
  std::map<std::string, const StoredTensor*> found;
  for (const StoredTensor& tensor : stored) found[tensor.name] = &tensor;
  const Faults faults = compare(engine.tensors(), found);
  if (!faults.none()) throw DataError(path + " does not fit the model" + faults.describe());
  for (const ModelTensor& tensor : engine.tensors()) {
    if (engine.here(tensor.stage)) engine.write_tensor(tensor.name, found.at(tensor.name)->values);
  }
}

void save_weights(const Engine& engine, const std::string& path, ProcessGroup* processes) {
  std::vector<float> values;  // in the order of the tensors, which is that of the stages and so of the ranks
  for (const ModelTensor& tensor : engine.tensors()) {
    if (!engine.here(tensor.stage)) continue;
    const std::vector<float> part = engine.read_tensor(tensor.name);
    values.insert(values.end(), part.begin(), part.end());
  }
  if (processes != nullptr) {
    values = gather_values(*processes, values);
    if (processes->rank() != 0) return;
  }
  std::vector<TensorView> views;
  std::size_t at = 0;
  for (const ModelTensor& tensor : engine.tensors()) {
    const auto elements = static_cast<std::size_t>(tensor.shape.elements());
    views.push_back({tensor.name, tensor.shape, std::span(values).subspan(at, elements)});
    at += elements;
  }
  write_safetensors(path, views);
}

}  // namespace pipeoptim::app
