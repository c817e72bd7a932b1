#include "models/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/error.h"
#include "models/pending_file.h"

namespace pipeoptim {

namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian, and so is this code");

using Json = nlohmann::ordered_json;
constexpr std::uint64_t kLargestHeader = 100'000'000;  // the reference implementation's limit

[[noreturn]] void fail(const std::filesystem::path& file, const std::string& what) {
  throw DataError(file.string() + ": " + what);
}

[[noreturn]] void fail(const std::filesystem::path& file, const std::string& tensor,
                       const std::string& what) {
  fail(file, "tensor '" + tensor + "': " + what);
}

float from_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 31) {
    const std::uint32_t wide =
        (bits & 0x8000U) << 16 | 0x7f800000U | static_cast<std::uint32_t>(mantissa) << 13;
    return std::bit_cast<float>(wide);
  }
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-24F;
  return sign * std::bit_cast<float>(static_cast<std::uint32_t>((exponent + 112) << 23 | mantissa << 13));
}

float from_bfloat(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

template <typename From, typename Convert>
void convert_all(const std::vector<char>& bytes, std::vector<float>& out, const Convert& convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    From value;
    std::memcpy(&value, bytes.data() + i * sizeof(From), sizeof(From));
    out[i] = convert(value);
  }
}

template <typename From>
float cast(From value) {
  return static_cast<float>(value);
}

struct ElementType {
  const char* name;
  std::size_t bytes;
  void (*convert)(const std::vector<char>&, std::vector<float>&);
};

constexpr ElementType kTypes[] = {
    {"F32", 4, [](const auto& bytes, auto& out) { convert_all<float>(bytes, out, cast<float>); }},
    {"F64", 8, [](const auto& bytes, auto& out) { convert_all<double>(bytes, out, cast<double>); }},
    {"F16", 2, [](const auto& bytes, auto& out) { convert_all<std::uint16_t>(bytes, out, from_half); }},
    {"BF16", 2, [](const auto& bytes, auto& out) { convert_all<std::uint16_t>(bytes, out, from_bfloat); }},
    {"I64", 8,
     [](const auto& bytes, auto& out) { convert_all<std::int64_t>(bytes, out, cast<std::int64_t>); }},
    {"I32", 4,
     [](const auto& bytes, auto& out) { convert_all<std::int32_t>(bytes, out, cast<std::int32_t>); }},
};

// One entry of the header, checked against itself.
struct Entry {
  std::string name;
  Shape shape;
  const ElementType* type = nullptr;
  std::uint64_t begin = 0, end = 0;
};

Shape parse_shape(const std::filesystem::path& file, const std::string& name,
                  const std::vector<std::uint64_t>& extents) {
  constexpr std::uint64_t kLargest = std::uint64_t{1} << 40;  // elements; far from overflow in bytes
  // By rank, because a Shape's rank is fixed by its constructor.
  static const Shape kByRank[] = {{}, {0}, {0, 0}, {0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0, 0}};
  static_assert(std::size(kByRank) == Shape::kMaxRank + 1);
  if (extents.size() > Shape::kMaxRank) {
    fail(file, name,
         "has " + std::to_string(extents.size()) + " extents; at most " + std::to_string(Shape::kMaxRank) +
             " are supported");
  }
  Shape shape = kByRank[extents.size()];
  std::uint64_t elements = 1;
  for (std::size_t axis = 0; axis < extents.size(); ++axis) {
    const std::uint64_t extent = extents[axis];
    if (extent > kLargest || (extent != 0 && elements > kLargest / extent)) {
      fail(file, name, "the shape is impossibly large");
    }
    elements *= extent;
    shape[static_cast<int>(axis)] = static_cast<std::int64_t>(extent);
  }
  return shape;
}

Entry parse_entry(const std::filesystem::path& file, const std::string& name, const Json& json) {
  const auto is_count = [](const Json& value) { return value.is_number_unsigned(); };
  if (!json.is_object() || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets") || !json["dtype"].is_string() || !json["shape"].is_array() ||
      !json["data_offsets"].is_array() || json["data_offsets"].size() != 2 ||
      !std::all_of(json["shape"].begin(), json["shape"].end(), is_count) ||
      !std::all_of(json["data_offsets"].begin(), json["data_offsets"].end(), is_count)) {
    fail(file, name, "the header entry needs dtype, shape and two data_offsets");
  }
  Entry entry;
  entry.name = name;
  const auto dtype = json["dtype"].get<std::string>();
  const auto* type =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& t) { return t.name == dtype; });
  if (type == std::end(kTypes)) {
    fail(file, name, "element type " + dtype + " is not read; F32, F64, F16, BF16, I64 and I32 are");
  }
  entry.type = type;

  entry.shape = parse_shape(file, name, json["shape"].get<std::vector<std::uint64_t>>());
  entry.begin = json["data_offsets"][0].get<std::uint64_t>();
  entry.end = json["data_offsets"][1].get<std::uint64_t>();
  const auto elements = static_cast<std::uint64_t>(entry.shape.elements());
  if (entry.end < entry.begin || entry.end - entry.begin != elements * type->bytes) {
    fail(file, name,
         "data_offsets " + std::to_string(entry.begin) + " to " + std::to_string(entry.end) +
             " do not hold " + std::to_string(elements) + " elements of " + dtype);
  }
  return entry;
}

Json parse_header(const std::filesystem::path& file, const std::string& text) {
  std::set<std::string> names;
  const auto reject_duplicates = [&](int depth, Json::parse_event_t event, const Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 && !names.insert(parsed.get<std::string>()).second) {
      fail(file, parsed.get<std::string>(), "occurs twice in the header");
    }
    return true;
  };
  Json header;
  try {
    header = Json::parse(text, reject_duplicates);
  } catch (const Json::exception& error) {
    fail(file, std::string("the safetensors header is not valid JSON: ") + error.what());
  }
  if (!header.is_object()) fail(file, "the safetensors header is no JSON object");
  return header;
}

// The values lie one after the other without holes, in any order of the header, up to the end of the file.
void check_layout(const std::filesystem::path& file, std::vector<Entry>& entries, std::uint64_t body) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::uint64_t end = 0;
  for (const Entry& entry : entries) {
    if (entry.end > body) {
      fail(file, entry.name,
           "ends at byte " + std::to_string(entry.end) + " of the data, but the file has only " +
               std::to_string(body) + "; it is truncated");
    }
    if (entry.begin != end) {
      fail(file, entry.name,
           "begins at byte " + std::to_string(entry.begin) + " of the data, expected " + std::to_string(end) +
               " (overlap or hole)");
    }
    end = entry.end;
  }
  if (end != body) {
    fail(file, std::to_string(body - end) +
                   " bytes after the last tensor; the file is not a safetensors file or corrupt");
  }
}

}  // namespace

std::vector<StoredTensor> read_safetensors(const std::filesystem::path& file) {
  errno = 0;
  std::error_code status;
  if (std::filesystem::is_directory(file, status)) fail(file, "is a folder, not a safetensors file");
  std::ifstream input(file, std::ios::binary);
  if (!input) fail(file, std::string("cannot open: ") + std::strerror(errno));
  const std::uint64_t size = std::filesystem::file_size(file, status);
  if (status) fail(file, "cannot tell its size: " + status.message());

  std::uint64_t length = 0;
  if (size < sizeof(length) || !input.read(reinterpret_cast<char*>(&length), sizeof(length))) {
    fail(file, "not a safetensors file: expected a header length of 8 bytes, found " + std::to_string(size) +
                   " bytes in all");
  }
  if (length > kLargestHeader || length > size - sizeof(length)) {
    fail(file, "not a safetensors file, or truncated: the header should have " + std::to_string(length) +
                   " bytes, the file has " + std::to_string(size));
  }
  std::string text(static_cast<std::size_t>(length), '\0');
  if (!input.read(text.data(), static_cast<std::streamsize>(length))) fail(file, "the header cannot be read");
  const Json header = parse_header(file, text);

  std::vector<Entry> entries;
  for (const auto& [name, json] : header.items()) {
    if (name != "__metadata__") entries.push_back(parse_entry(file, name, json));
  }
  check_layout(file, entries, size - sizeof(length) - length);

  std::vector<StoredTensor> tensors;
  std::vector<char> bytes;
  for (const Entry& entry : entries) {
    bytes.resize(static_cast<std::size_t>(entry.end - entry.begin));
    if (!bytes.empty() && !input.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
      fail(file, entry.name, "the values cannot be read");
    }
    std::vector<float> values(bytes.size() / entry.type->bytes);
    entry.type->convert(bytes, values);
    tensors.push_back({entry.name, entry.shape, std::move(values)});
  }
  return tensors;
}

namespace {

std::string make_header(const std::filesystem::path& file, std::span<const TensorView> tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json header;
  header["__metadata__"] = {{"format", "pt"}};
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  std::uint64_t offset = 0;
  for (const TensorView& tensor : tensors) {
    if (tensor.name == "__metadata__" || header.contains(tensor.name)) {
      throw std::logic_error(file.string() + ": two tensors named '" + tensor.name + "'");
    }
    if (static_cast<std::int64_t>(tensor.values.size()) != tensor.shape.elements()) {
      throw std::logic_error(file.string() + ": tensor '" + tensor.name + "' has " +
                             std::to_string(tensor.values.size()) + " values for shape " +
                             tensor.shape.to_string());
    }
    Json extents = Json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) extents.push_back(tensor.shape[axis]);
    const std::uint64_t end = offset + tensor.values.size_bytes();
    header[tensor.name] = {{"dtype", "F32"}, {"shape", extents}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

void write_safetensors(const std::filesystem::path& file, std::span<const TensorView> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string header = make_header(file, tensors, metadata);
  PendingFile pending(file);
  const std::uint64_t length = header.size();
  pending.write(&length, sizeof(length));
  pending.write(header.data(), header.size());
  for (const TensorView& tensor : tensors) pending.write(tensor.values.data(), tensor.values.size_bytes());
  pending.commit();
}

}  // namespace pipeoptim
