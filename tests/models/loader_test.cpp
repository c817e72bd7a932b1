#include "models/data/loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <thread>

#include "models/data/synthetic.h"
#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

// Records whose first pixel is their number, so that a mini-batch tells which records it holds.
std::shared_ptr<Dataset> numbered(std::int64_t records, std::int64_t side = 4) {
  auto data = std::make_shared<Dataset>();
  data->name = "numbered";
  data->height = data->width = side;
  data->channels = 1;
  data->classes = 256;
  data->mean = {0.0F};
  data->deviation = {1.0F / 255};
  data->images.resize(static_cast<std::size_t>(records * side * side));
  for (std::int64_t i = 0; i < records; ++i) {
    data->images[static_cast<std::size_t>(i * side * side)] = static_cast<std::uint8_t>(i);
    data->labels.push_back(static_cast<std::uint8_t>(i));
  }
  return data;
}

struct Epoch {
  std::vector<float> inputs;
  std::vector<std::int32_t> labels;
  bool operator==(const Epoch&) const = default;
};

Epoch read_epoch(Loader& loader, std::int64_t epoch) {
  Epoch out;
  const auto batch = loader.options().batch;
  loader.start_epoch(epoch);
  for (std::int64_t t = 0; t < loader.minibatches(); ++t) {
    const LoadedBatch loaded = loader.acquire(t);
    out.inputs.insert(out.inputs.end(), loaded.inputs, loaded.inputs + batch * loader.dataset().values());
    out.labels.insert(out.labels.end(), loaded.labels, loaded.labels + batch);
    loader.release(t);
  }
  return out;
}

// Running text of tokens 0, 1, 2, ...: a record's first token tells where it begins.
std::shared_ptr<Dataset> counted_text(std::int32_t tokens, std::int64_t sequence_length) {
  auto data = std::make_shared<Dataset>();
  data->name = "counted";
  data->kind = DataKind::kRunningText;
  data->sequence_length = sequence_length;
  data->vocabulary = tokens;
  for (std::int32_t token = 0; token < tokens; ++token) data->tokens.push_back(token);
  return data;
}

TEST(Loader, LabelsEachTokenWithTheNext) {
  const auto data = counted_text(26, 5);
  EXPECT_EQ(data->records(), 5);
  Loader loader(data, {.batch = 2, .order = Order::kShuffled, .remainder = Remainder::kPad});
  ASSERT_EQ(loader.minibatches(), 3);
  loader.start_epoch(0);
  std::set<float> begins;
  for (std::int64_t t = 0; t < 3; ++t) {
    const LoadedBatch loaded = loader.acquire(t);
    for (std::int64_t record = 0; record < 2; ++record) {
      const bool padding = t == 2 && record == 1;
      const float begin = loaded.inputs[record * 5];
      if (!padding) begins.insert(begin);
      for (std::int64_t i = 0; i < 5; ++i) {
        const float token = padding ? 0 : begin + static_cast<float>(i);
        EXPECT_EQ(loaded.inputs[record * 5 + i], token);
        EXPECT_EQ(loaded.labels[record * 5 + i], padding ? -1 : static_cast<std::int32_t>(token) + 1);
      }
    }
    loader.release(t);
  }
  EXPECT_EQ(begins, (std::set<float>{0, 5, 10, 15, 20}));
}

TEST(Loader, FileOrderAndDroppedRemainder) {
  Loader loader(numbered(23), {.batch = 5});
  EXPECT_EQ(loader.minibatches(), 4);
  const Epoch epoch = read_epoch(loader, 3);
  ASSERT_EQ(epoch.labels.size(), 20U);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(epoch.labels[static_cast<std::size_t>(i)], i);
    EXPECT_FLOAT_EQ(epoch.inputs[static_cast<std::size_t>(16 * i)], static_cast<float>(i));
  }
}

TEST(Loader, PadsTheRemainder) {
  Loader loader(numbered(23), {.batch = 5, .remainder = Remainder::kPad, .depth = 1});
  EXPECT_EQ(loader.minibatches(), 5);
  for (int pass = 0; pass < 2; ++pass) {
    const Epoch epoch = read_epoch(loader, pass);
    EXPECT_EQ(epoch.labels[22], 22);
    EXPECT_EQ(epoch.labels[23], -1);
    EXPECT_EQ(epoch.labels[24], -1);
    EXPECT_EQ(epoch.inputs[24 * 16], 0.0F);
  }
  Loader small(numbered(3), {.batch = 5, .remainder = Remainder::kPad});
  EXPECT_EQ(small.minibatches(), 1);
}

TEST(Loader, NormalisesEveryByte) {
  auto data = numbered(256);
  data->mean = {0.2860F};
  data->deviation = {0.3530F};
  Loader loader(data, {.batch = 256});
  const Epoch epoch = read_epoch(loader, 0);
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_NEAR(epoch.inputs[static_cast<std::size_t>(16 * byte)], (byte / 255.0 - 0.2860) / 0.3530, 1e-6);
  }
}

TEST(Loader, NormalisesEachChannel) {
  if (!std::filesystem::exists(mini_cifar())) GTEST_SKIP() << "no " << mini_cifar();
  const auto data = std::make_shared<Dataset>(load_dataset("cifar10", mini_cifar(), Split::kTest));
  Loader loader(data, {.batch = 1000});
  const Epoch epoch = read_epoch(loader, 0);
  const double mean[] = {0.4914, 0.4822, 0.4465}, deviation[] = {0.2470, 0.2435, 0.2616};
  for (std::size_t i = 0; i < epoch.inputs.size(); i += 101) {
    EXPECT_NEAR(epoch.inputs[i], (data->images[i] / 255.0 - mean[i % 3]) / deviation[i % 3], 1e-6);
  }
}

TEST(Loader, ShufflesEveryEpochAnew) {
  Loader loader(numbered(200), {.batch = 10, .order = Order::kShuffled, .seed = 5});
  const Epoch first = read_epoch(loader, 0), second = read_epoch(loader, 1);
  EXPECT_NE(first.labels, second.labels);
  for (const Epoch& epoch : {first, second}) {
    EXPECT_EQ(std::set<std::int32_t>(epoch.labels.begin(), epoch.labels.end()).size(), 200U);
    EXPECT_FALSE(std::is_sorted(epoch.labels.begin(), epoch.labels.end()));
    for (std::size_t i = 0; i < 200; ++i)
      EXPECT_FLOAT_EQ(epoch.inputs[16 * i], static_cast<float>(epoch.labels[i]));
  }
  EXPECT_EQ(read_epoch(loader, 0), first);
}

TEST(Loader, ContentDependsOnSeedAndEpochAlone) {
  SyntheticOptions options;
  options.records = 300;
  options.channels = 3;
  const auto data = std::make_shared<Dataset>(make_synthetic(options, Split::kTrain));
  LoaderOptions loading{.batch = 20,
                        .order = Order::kShuffled,
                        .augmentation = Augmentation::kCropAndFlip,
                        .seed = 11,
                        .depth = 1};
  Loader one(data, loading);
  loading.depth = 7;
  Loader seven(data, loading);
  read_epoch(seven, 0);
  EXPECT_EQ(read_epoch(one, 2), read_epoch(seven, 2));
  loading.seed = 12;
  Loader other(data, loading);
  EXPECT_NE(read_epoch(one, 2), read_epoch(other, 2));
}

// Every augmented image is one of the crops, flipped or not, and all of them turn up.
TEST(Loader, AugmentsWithCropsAndFlips) {
  for (const std::int64_t side : {28, 32}) {
    const std::int64_t padding = side < 32 ? 2 : 4;
    auto data = numbered(1, side);
    for (std::size_t i = 0; i < data->images.size(); ++i)
      data->images[i] = static_cast<std::uint8_t>(1 + i * 7 % 251);
    Loader loader(data, {.batch = 1, .augmentation = Augmentation::kCropAndFlip});
    std::set<std::int64_t> seen;
    for (std::int64_t epoch = 0; epoch < 1500; ++epoch) {
      const Epoch read = read_epoch(loader, epoch);
      std::int64_t found = -1, candidate = 0;
      for (std::int64_t down = -padding; down <= padding; ++down) {
        for (std::int64_t right = -padding; right <= padding; ++right) {
          for (const bool flip : {false, true}) {
            bool equal = true;
            for (std::int64_t i = 0; equal && i < side * side; ++i) {
              const std::int64_t y = i / side + down, x = (flip ? side - 1 - i % side : i % side) + right;
              const bool inside = y >= 0 && y < side && x >= 0 && x < side;
              const int byte = inside ? data->images[static_cast<std::size_t>(y * side + x)] : 0;
              equal = std::abs(read.inputs[static_cast<std::size_t>(i)] - static_cast<float>(byte)) < 1e-3F;
            }
            if (equal) found = candidate;
            ++candidate;
          }
        }
      }
      ASSERT_GE(found, 0);
      seen.insert(found);
    }
    EXPECT_EQ(static_cast<std::int64_t>(seen.size()), (2 * padding + 1) * (2 * padding + 1) * 2);
  }
}

TEST(Loader, AllocatesNothingAfterConstruction) {
  Loader loader(numbered(200), {.batch = 10, .order = Order::kShuffled});
  const std::int64_t before = allocation_count();
  read_epoch(loader, 0);
  read_epoch(loader, 1);
  EXPECT_EQ(allocation_count(), before);
}

TEST(Loader, CanBeLeftOrRestartedAtAnyTime) {
  const auto data = numbered(250);
  Epoch expected;
  {
    Loader loader(data, {.batch = 10, .order = Order::kShuffled});
    expected = read_epoch(loader, 4);
  }
  for (int taken = 0; taken < 8; ++taken) {
    Loader loader(data, {.batch = 10, .order = Order::kShuffled, .depth = 3});
    if (taken == 7) continue;  // never started
    loader.start_epoch(1);
    for (int t = 0; t < taken; ++t) {
      loader.acquire(t);
      if (t + 2 < taken) loader.release(t);  // two are still held
    }
    if (taken % 2 == 0) {
      EXPECT_EQ(read_epoch(loader, 4), expected);
    }
  }
}

TEST(Loader, ReleaseFromOtherThreads) {
  Loader loader(numbered(250), {.batch = 5, .depth = 2});
  loader.start_epoch(0);
  std::thread previous;
  for (std::int64_t t = 0; t < loader.minibatches(); ++t) {
    EXPECT_EQ(loader.acquire(t).labels[0], 5 * t);
    if (previous.joinable()) previous.join();
    previous = std::thread([&loader, t] { loader.release(t); });
  }
  previous.join();
}

TEST(Loader, RejectsImpossibleNumbers) {
  EXPECT_THROW(Loader(numbered(3), {.batch = 0}), std::invalid_argument);
  EXPECT_THROW(Loader(numbered(3), {.batch = 1, .depth = 0}), std::invalid_argument);
  EXPECT_THROW(Loader(numbered(0), {.batch = 1}), std::invalid_argument);
  expect_mentions(message_of<std::invalid_argument>([] { Loader loader(numbered(3), {.batch = 4}); }),
                  {"4", "3"});
  Loader loader(numbered(4), {.batch = 2});
  EXPECT_THROW(loader.acquire(0), std::logic_error);
  loader.start_epoch(0);
  EXPECT_THROW(loader.acquire(2), std::logic_error);
}

}  // namespace
}  // namespace pipeoptim::test
