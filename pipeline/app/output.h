// Files that the program writes: checked before the work begins, results written whole or not at all.
#pragma once

#include <chrono>
#include <fstream>
#include <string>
#include <vector>

namespace pipeoptim::app {

// Throws DataError, naming the path and the reason, when no file could grow there. Creates nothing.
void check_writable(const std::string& path);

// A file that appears whole or not at all.
void write_text(const std::string& path, const std::string& text);

// A file of lines that grows as it goes, and is brought up to date once a second while lines come.
class LineFile {
 public:
  explicit LineFile(const std::string& path);
  // Throws DataError when the disk refuses.
  void write(const std::string& line);
  void flush();

 private:
  std::string path_;
  std::ofstream file_;
  std::chrono::steady_clock::time_point flushed_ = std::chrono::steady_clock::now();
};

// The folder of one run. Making the object checks and creates nothing.
class RunDirectory {
 public:
  // Throws DataError when it cannot be used: not writable, not a folder, or holding an earlier run while
  // `overwrite` was not given.
  RunDirectory(std::string path, bool overwrite);
  void make_folder() const;
  // Makes the folder, and takes an earlier run's files out of it.
  void create() const;

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
