#include "models/data/synthetic.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "models/draws.h"

namespace pipeoptim {

namespace {

constexpr std::int64_t kGrid = 5, kShift = 2;  // coarse grid of a pattern; largest shift in pixels
enum Group : std::uint64_t { kPatterns = 0, kTrainRecords = 1, kTestRecords = 2 };

// A class's pattern: random values on a coarse grid, interpolated; larger than the image by the shifts.
// Integer arithmetic, so that every machine makes the same bytes.
std::vector<int> make_pattern(const SyntheticOptions& options, int label) {
  const std::int64_t height = options.height + 2 * kShift, width = options.width + 2 * kShift;
  std::vector<int> pattern;
  pattern.reserve(static_cast<std::size_t>(height * width * options.channels));
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const std::int64_t fine_y = y * (kGrid - 1) * 256 / height, fine_x = x * (kGrid - 1) * 256 / width;
      for (std::int64_t c = 0; c < options.channels; ++c) {
        const auto corner = [&](std::int64_t down, std::int64_t right) {
          const std::int64_t at =
              ((label * kGrid + fine_y / 256 + down) * kGrid + fine_x / 256 + right) * options.channels + c;
          return static_cast<std::int64_t>(
              draw(options.seed, Purpose::kSynthetic, kPatterns, static_cast<std::uint64_t>(at)) >> 24);
        };
        const std::int64_t v = fine_y % 256, u = fine_x % 256;
        const std::int64_t value = (256 - v) * ((256 - u) * corner(0, 0) + u * corner(0, 1)) +
                                   v * ((256 - u) * corner(1, 0) + u * corner(1, 1));
        pattern.push_back(static_cast<int>(value >> 16));
      }
    }
  }
  return pattern;
}

}  // namespace

Dataset make_synthetic(const SyntheticOptions& options, Split split) {
  if (options.records < 1 || options.height < 1 || options.width < 1 || options.channels < 1 ||
      options.classes < 1 || options.classes > 256) {
    throw std::invalid_argument(
        "synthetic data needs at least one record, pixel, channel and class (at most 256)");
  }
  Dataset dataset;
  dataset.name = "synthetic";
  dataset.height = options.height;
  dataset.width = options.width;
  dataset.channels = options.channels;
  dataset.classes = options.classes;
  dataset.mean.assign(static_cast<std::size_t>(options.channels), 0.5F);
  dataset.deviation.assign(static_cast<std::size_t>(options.channels), 0.25F);
  dataset.images.reserve(static_cast<std::size_t>(options.records * dataset.values()));
  dataset.labels.reserve(static_cast<std::size_t>(options.records));

  std::vector<std::vector<int>> patterns;
  for (int label = 0; label < options.classes; ++label) patterns.push_back(make_pattern(options, label));

  const std::uint64_t group = split == Split::kTrain ? kTrainRecords : kTestRecords;
  const auto per_record = static_cast<std::uint64_t>(dataset.values() + 3);
  for (std::int64_t record = 0; record < options.records; ++record) {
    std::uint64_t element = static_cast<std::uint64_t>(record) * per_record;
    const auto next = [&](std::uint32_t bound) {
      return static_cast<std::int64_t>(
          bounded(draw(options.seed, Purpose::kSynthetic, group, element++), bound));
    };
    const auto label = next(static_cast<std::uint32_t>(options.classes));
    const std::int64_t down = next(2 * kShift + 1), right = next(2 * kShift + 1);
    const std::vector<int>& pattern = patterns[static_cast<std::size_t>(label)];
    const std::int64_t stride = options.width + 2 * kShift;
    dataset.labels.push_back(static_cast<std::uint8_t>(label));
    for (std::int64_t y = 0; y < options.height; ++y) {
      for (std::int64_t x = 0; x < options.width; ++x) {
        for (std::int64_t c = 0; c < options.channels; ++c) {
          const std::int64_t from = ((y + down) * stride + x + right) * options.channels + c;
          const std::int64_t noise = next(static_cast<std::uint32_t>(2 * options.noise + 1)) - options.noise;
          dataset.images.push_back(static_cast<std::uint8_t>(
              std::clamp<std::int64_t>(pattern[static_cast<std::size_t>(from)] + noise, 0, 255)));
        }
      }
    }
  }
  return dataset;
}

}  // namespace pipeoptim
