// Files that tests make: a folder of their own, removed at the end; gzip; corruption.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

namespace pipeoptim::test {

inline const std::filesystem::path kFashionMnist = "/usr/share/datasets/fashion-mnist";

// Real data that lies beside the repository; absent elsewhere.
inline std::filesystem::path shared_data() {
  const char* shared = std::getenv("PIPEOPTIM_SHARED");
  const std::filesystem::path base = shared ? shared : PIPEOPTIM_SOURCE_DIR "/../shared";
  return base / "data";
}
// Lossless records of CIFAR-10.
inline std::filesystem::path mini_cifar() { return shared_data() / "cifar10/mini-bin"; }

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "pipeoptim-test-XXXXXX").string();
    if (!::mkdtemp(name.data())) std::abort();
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& file) {
  std::ifstream input(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(input), {}};
}

inline void write_file(const std::filesystem::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary) << bytes;
}

// The message of the Error that `call` throws; fails the test where it throws none.
template <typename Error>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "no error";
  return {};
}

inline void expect_mentions(const std::string& text, std::initializer_list<const char*> words) {
  for (const char* word : words)
    EXPECT_NE(text.find(word), std::string::npos) << word << " is not in: " << text;
}

}  // namespace pipeoptim::test
