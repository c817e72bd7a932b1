// Runs the built program as a user would, in a folder of its own.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace pipeoptim::test {

using Json = nlohmann::json;
namespace fs = std::filesystem;

struct Outcome {
  int code = -1;
  std::string out, err;
};

inline std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::vector<Json> read_lines(const fs::path& path) {
  std::vector<Json> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

class ProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(test->test_suite_name()) + "." + test->name();
    std::replace(name.begin(), name.end(), '/', '_');
    folder_ = fs::temp_directory_path() / ("pipeoptim-" + std::to_string(getpid()) + "-" + name);
    fs::create_directories(folder_ / "out");
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A file that the program may write; everything it writes in a test goes to this folder.
  std::string out(const std::string& name) const { return (folder_ / "out" / name).string(); }
  std::string scratch(const std::string& name) const { return (folder_ / name).string(); }
  bool nothing_written() const { return fs::is_empty(folder_ / "out"); }

  // `environment`: NAME=VALUE. `name` tells apart what several programs print.
  pid_t start(const std::vector<std::string>& arguments, const std::vector<std::string>& environment = {},
              const std::string& name = "", const char* program = PIPEOPTIM_PROGRAM) const {
    const pid_t child = fork();
    if (child != 0) return child;
    for (const std::string& variable : environment) putenv(const_cast<char*>(variable.c_str()));
    std::vector<char*> argv = {const_cast<char*>(program)};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    for (const auto& [descriptor, file] :
         {std::pair{STDOUT_FILENO, "stdout"}, std::pair{STDERR_FILENO, "stderr"}}) {
      dup2(open(scratch(file + name).c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600), descriptor);
    }
    execv(program, argv.data());
    _exit(127);
  }

  // Whether the condition came true within a minute.
  template <typename Condition>
  static bool wait_until(const Condition& holds) {
    for (int i = 0; i < 6000; ++i) {
      if (holds()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  Outcome finish(pid_t child, const std::string& name = "") const {
    int status = 0;
    waitpid(child, &status, 0);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return {code, read_text(scratch("stdout" + name)), read_text(scratch("stderr" + name))};
  }

  Outcome run(const std::vector<std::string>& arguments) const { return finish(start(arguments)); }

  // A few steps of a small network on the real data, with the given additions.
  std::vector<std::string> small(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {
        "train",        "--model", "mlp",          "--hidden",    "24,20,16", "--steps",
        "12",           "--lr",    "0.05",         "--optimizer", "sgdm",     "--no-shuffle",
        "--batch-size", "32",      "--limit-test", "500",         "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  Outcome train(std::vector<std::string> more = {}) const { return run(small(std::move(more))); }

  // One message, no output, the exit code, and nothing left behind.
  void expect_refused(const Outcome& outcome, int code, const std::vector<std::string>& words) const {
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_EQ(outcome.err.rfind("pipeoptim: ", 0), 0U) << outcome.err;
    for (const std::string& word : words) {
      EXPECT_NE(outcome.err.find(word), std::string::npos) << "no '" << word << "' in: " << outcome.err;
    }
    EXPECT_EQ(outcome.err.find("internal error"), std::string::npos) << outcome.err;
    EXPECT_TRUE(nothing_written());
  }

 private:
  fs::path folder_;
};

}  // namespace pipeoptim::test
