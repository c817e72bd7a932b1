// Files that the program writes: checked before the work begins, results written whole or not at all.
#pragma once

#include <chrono>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace pipeoptim::app {

// Throws DataError, naming the path and the reason, when a file could not be written there. Creates nothing.
void check_writable(const std::string& path);

// Calls write(temporary path) and moves the file into place; on failure nothing is left behind.
void write_atomically(const std::string& path, const std::function<void(const std::string&)>& write);
void write_text(const std::string& path, const std::string& text);

// A file of lines that grows as it goes: at most a second of it is unwritten.
class LineFile {
 public:
  explicit LineFile(const std::string& path);
  // Throws DataError when the disk refuses.
  void write(const std::string& line);
  void flush();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::ofstream file_;
  std::chrono::steady_clock::time_point flushed_ = std::chrono::steady_clock::now();
};

// The folder of one run. Making the object checks and creates nothing; create() makes the folder.
class RunDirectory {
 public:
  // Throws DataError when it cannot be used: not writable, not a folder, or holding an earlier run while
  // `overwrite` was not given.
  RunDirectory(std::string path, bool overwrite);
  void create();

  bool used() const { return !path_.empty(); }
  std::string config() const { return file("config.toml"); }
  std::string metrics() const { return file("metrics.jsonl"); }
  std::string trace() const { return file("trace.json"); }
  std::string weights() const { return file("weights.safetensors"); }
  std::string comparison(const std::string& form) const { return file("comparison." + form); }
  const std::string& path() const { return path_; }

 private:
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::vector<std::string> earlier_files() const;

  std::string path_;
};

}  // namespace pipeoptim::app
