// Config files: TOML whose keys are the long option names.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace pipeoptim::app {

// Keys and values of a file, in its order, values as they would be typed on the command line ("true", "0.1",
// "256,128"). Throws DataError when it cannot be read, std::invalid_argument (with the line) when it is not
// TOML or holds something that no option takes.
std::vector<std::pair<std::string, std::string>> read_config(const std::string& path);

// A value as TOML text.
std::string toml_string(const std::string& text);
std::string toml_number(double value);
template <typename Integer>
std::string toml_list(const std::vector<Integer>& values) {
  std::string text = "[";
  for (std::size_t i = 0; i < values.size(); ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

}  // namespace pipeoptim::app
