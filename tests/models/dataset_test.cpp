#include "models/data/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "kernels/runtime/error.h"
#include "models/data/cifar10.h"
#include "models/data/idx.h"
#include "models/data/synthetic.h"
#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

// IDX files by hand: images of 2 x 3 pixels.
std::string idx_header(int rank, std::initializer_list<unsigned> extents) {
  std::string bytes{'\0', '\0', '\x08', static_cast<char>(rank)};
  for (const unsigned extent : extents) {
    for (const int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(extent >> shift));
  }
  return bytes;
}

struct SmallIdx {
  TemporaryFolder folder;
  std::string images = idx_header(3, {4, 2, 3}) + "abcdefghijklmnopqrstuvwx";
  std::string labels = idx_header(1, {4}) + std::string{'\0', '\1', '\2', '\1'};

  Dataset read() {
    write_file(folder / "train-images-idx3-ubyte", images);
    write_file(folder / "train-labels-idx1-ubyte", labels);
    return read_idx_pair(folder.path(), Split::kTrain, 3);
  }
  std::string error() {
    return message_of<DataError>([&] { read(); });
  }
};

TEST(Idx, ReadsPlainFiles) {
  SmallIdx files;
  const Dataset data = files.read();
  EXPECT_EQ(data.records(), 4);
  EXPECT_EQ(data.height, 2);
  EXPECT_EQ(data.width, 3);
  EXPECT_EQ(data.channels, 1);
  EXPECT_EQ(data.images[6], 'g');
  EXPECT_EQ(data.labels, (std::vector<std::uint8_t>{0, 1, 2, 1}));
}

TEST(Idx, TellsTruncatedFiles) {
  SmallIdx files;
  files.images.pop_back();
  expect_mentions(files.error(), {"train-images-idx3-ubyte", "24 bytes", "23", "truncated", "byte 39"});
  files.images = files.images.substr(0, 9);
  expect_mentions(files.error(), {"header of 16 bytes", "byte 9"});
  files.images.clear();
  expect_mentions(files.error(), {"header of 16 bytes", "byte 0"});
}

TEST(Idx, TellsForeignAndTooLongFiles) {
  SmallIdx files;
  std::swap(files.images, files.labels);
  expect_mentions(files.error(), {"images", "0x00000803", "0x00000801", "byte 0"});
  SmallIdx png;
  png.images = "\x89PNG\r\n and more than sixteen bytes";
  expect_mentions(png.error(), {"0x00000803", "0x89504e47", "byte 0"});
  SmallIdx longer;
  longer.images += "x";
  expect_mentions(longer.error(), {"24 bytes", "more", "byte 40"});
  SmallIdx huge;
  huge.images = idx_header(3, {0xffffffffU, 0xffffffffU, 0xffffffffU});
  expect_mentions(huge.error(), {"plausible extent", "4294967295", "byte 4"});
}

TEST(Idx, TellsLabelsThatDoNotFit) {
  SmallIdx files;
  files.labels.back() = '\3';
  expect_mentions(files.error(), {"labels", "from 0 to 2", "found 3", "byte 11"});
  SmallIdx fewer;
  fewer.labels = idx_header(1, {3}) + std::string(3, '\0');
  expect_mentions(fewer.error(), {"4 labels", "found 3"});
}

TEST(Idx, TellsImagesThatAreNotThoseOfTheDataSet) {
  SmallIdx files;
  files.read();
  expect_mentions(message_of<DataError>([&] { load_dataset("mnist", files.folder.path(), Split::kTrain); }),
                  {"28 x 28", "2 x 3"});
}

TEST(Idx, TellsMissingFiles) {
  TemporaryFolder folder;
  expect_mentions(message_of<DataError>([&] { read_idx_pair(folder.path(), Split::kTest, 10); }),
                  {"t10k-images-idx3-ubyte", "no such file", "dataset-fashion-mnist"});
}

TEST(FashionMnist, ReadsTheDebianPackage) {
  if (!std::filesystem::exists(kFashionMnist)) GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  const Dataset train = load_dataset("fashion-mnist", kFashionMnist, Split::kTrain);
  const Dataset test = load_dataset("fashion-mnist", kFashionMnist, Split::kTest);
  ASSERT_EQ(train.records(), 60000);
  ASSERT_EQ(test.records(), 10000);
  EXPECT_EQ(train.values(), 784);
  for (int label = 0; label < 10; ++label) {
    EXPECT_EQ(std::count(train.labels.begin(), train.labels.end(), label), 6000);
    EXPECT_EQ(std::count(test.labels.begin(), test.labels.end(), label), 1000);
  }
  double sum = 0, squares = 0;
  for (const std::uint8_t byte : train.images) {
    sum += byte / 255.0;
    squares += byte / 255.0 * byte / 255.0;
  }
  const double mean = sum / static_cast<double>(train.images.size());
  EXPECT_NEAR(mean, 0.2860, 5e-5);  // the published four digits
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(train.images.size()) - mean * mean), 0.3530, 5e-5);
}

TEST(FashionMnist, TellsCorruptAndTruncatedGzip) {
  if (!std::filesystem::exists(kFashionMnist)) GTEST_SKIP() << "dataset-fashion-mnist is not installed";
  TemporaryFolder folder;
  const std::string images = read_file(kFashionMnist / "t10k-images-idx3-ubyte.gz");
  write_file(folder / "t10k-labels-idx1-ubyte.gz", read_file(kFashionMnist / "t10k-labels-idx1-ubyte.gz"));
  const auto error = [&](const std::string& bytes) {
    write_file(folder / "t10k-images-idx3-ubyte.gz", bytes);
    return message_of<DataError>([&] { load_dataset("fashion-mnist", folder.path(), Split::kTest); });
  };
  expect_mentions(error(images.substr(0, images.size() / 2)), {"t10k-images", "gzip", "too early"});
  expect_mentions(error(images.substr(0, images.size() - 4)), {"t10k-images", "gzip"});  // within the trailer
  std::string corrupt = images;
  for (std::size_t i = 0; i < 64; ++i)
    corrupt[images.size() / 2 + i] = static_cast<char>(~corrupt[images.size() / 2 + i]);
  expect_mentions(error(corrupt), {"t10k-images", "corrupt gzip", "bytes of content"});
  write_file(folder / "t10k-images-idx3-ubyte.gz", images);
  EXPECT_EQ(load_dataset("fashion-mnist", folder.path(), Split::kTest).records(), 10000);
}

// Two records; the second has label 7 and a red plane of 1, green of 2, blue of 3.
std::string small_cifar() {
  std::string bytes(3073, '\0');
  return bytes + '\7' + std::string(1024, '\1') + std::string(1024, '\2') + std::string(1024, '\3');
}

TEST(Cifar10, ReadsAllBatchesChannelsLast) {
  TemporaryFolder folder;
  std::filesystem::create_directory(folder / "cifar-10-batches-bin");
  write_file(folder / "cifar-10-batches-bin/data_batch_1.bin", small_cifar());
  write_file(folder / "cifar-10-batches-bin/data_batch_2.bin", small_cifar());
  const Dataset data = read_cifar10(folder.path(), Split::kTrain);
  EXPECT_EQ(data.labels, (std::vector<std::uint8_t>{0, 7, 0, 7}));
  const std::size_t second = 3072;
  EXPECT_EQ(data.images[second + 3 * 500], 1);
  EXPECT_EQ(data.images[second + 3 * 500 + 1], 2);
  EXPECT_EQ(data.images[second + 3 * 500 + 2], 3);
}

TEST(Cifar10, TellsBadFiles) {
  TemporaryFolder folder;
  const auto error = [&] {
    return message_of<DataError>([&] { load_dataset("cifar10", folder.path(), Split::kTrain); });
  };
  expect_mentions(error(), {"data_batch_1.bin", "no such file", "cifar-10-batches-bin"});
  write_file(folder / "data_batch_1.bin", small_cifar().substr(0, 5000));
  expect_mentions(error(), {"data_batch_1.bin", "3073", "1927 bytes", "byte 3073"});
  write_file(folder / "data_batch_1.bin", "");
  expect_mentions(error(), {"data_batch_1.bin", "3073", "byte 0"});
  std::string foreign = small_cifar();
  foreign[3073] = 10;
  write_file(folder / "data_batch_1.bin", foreign);
  expect_mentions(error(), {"label from 0 to 9", "found 10", "byte 3073"});
  write_file(folder / "data_batch_1.bin", small_cifar());
  write_file(folder / "data_batch_3.bin", small_cifar());
  expect_mentions(error(), {"data_batch_2.bin", "no such file", "data_batch_3.bin"});
}

TEST(Cifar10, ReadsRealRecords) {
  if (!std::filesystem::exists(mini_cifar())) GTEST_SKIP() << "no " << mini_cifar();
  const Dataset train = load_dataset("cifar10", mini_cifar(), Split::kTrain);
  const Dataset test = load_dataset("cifar10", mini_cifar(), Split::kTest);
  EXPECT_EQ(train.records(), 3000);
  EXPECT_EQ(test.records(), 1000);
  EXPECT_EQ(std::count(train.labels.begin(), train.labels.end(), 0), 299);
  EXPECT_EQ(std::count(test.labels.begin(), test.labels.end(), 9), 113);
  std::vector<double> sum(3);
  for (std::size_t i = 0; i < train.images.size(); ++i) sum[i % 3] += train.images[i] / 255.0;
  for (std::size_t c = 0; c < 3; ++c) {  // 3000 of 50000 records: a percent off at most
    EXPECT_NEAR(sum[c] / (3000 * 1024), static_cast<double>(train.mean[c]), 0.01);
  }
}

TEST(Synthetic, IsTheSameEveryTime) {
  SyntheticOptions options;
  options.records = 100;
  const Dataset a = make_synthetic(options, Split::kTrain), b = make_synthetic(options, Split::kTrain);
  EXPECT_EQ(a.images, b.images);
  EXPECT_EQ(a.labels, b.labels);
  EXPECT_NE(a.images, make_synthetic(options, Split::kTest).images);
  options.seed = 1;
  EXPECT_NE(a.images, make_synthetic(options, Split::kTrain).images);
}

// The nearest class mean of the train split names nearly every record of the test split.
TEST(Synthetic, CanBeLearned) {
  SyntheticOptions options;
  options.records = 1000;
  const Dataset train = make_synthetic(options, Split::kTrain), test = make_synthetic(options, Split::kTest);
  const auto pixels = static_cast<std::size_t>(train.values());
  std::vector<std::vector<double>> means(10, std::vector<double>(pixels));
  std::vector<double> count(10);
  for (std::size_t r = 0; r < train.labels.size(); ++r) {
    ++count[train.labels[r]];
    for (std::size_t p = 0; p < pixels; ++p) means[train.labels[r]][p] += train.images[r * pixels + p];
  }
  int correct = 0;
  for (std::size_t r = 0; r < test.labels.size(); ++r) {
    std::size_t nearest = 0;
    double least = HUGE_VAL;
    for (std::size_t label = 0; label < 10; ++label) {
      double distance = 0;
      for (std::size_t p = 0; p < pixels; ++p) {
        distance += std::pow(means[label][p] / count[label] - test.images[r * pixels + p], 2);
      }
      if (distance < least) nearest = label;
      least = std::min(least, distance);
    }
    correct += nearest == test.labels[r];
  }
  EXPECT_GT(correct, 950);
}

TEST(LoadDataset, TellsUnknownNamesAndFolders) {
  expect_mentions(message_of<std::invalid_argument>([] { load_dataset("fashon-mnist", "", Split::kTrain); }),
                  {"fashon-mnist", "did you mean 'fashion-mnist'", "cifar10"});
  expect_mentions(message_of<DataError>([] { load_dataset("cifar10", "/no/such", Split::kTrain); }),
                  {"/no/such"});
  ::unsetenv("PIPEOPTIM_DATA");
  expect_mentions(message_of<std::invalid_argument>([] { load_dataset("cifar10", "", Split::kTrain); }),
                  {"cifar10", "--data-dir", "PIPEOPTIM_DATA"});
}

TEST(LoadDataset, LooksInTheEnvironmentsFolder) {
  TemporaryFolder folder;
  std::filesystem::create_directory(folder / "cifar10");
  write_file(folder / "cifar10/test_batch.bin", small_cifar());
  ::setenv("PIPEOPTIM_DATA", folder.path().c_str(), 1);
  EXPECT_EQ(load_dataset("cifar10", "", Split::kTest).records(), 2);
  ::unsetenv("PIPEOPTIM_DATA");
}

}  // namespace
}  // namespace pipeoptim::test
