// Config files: TOML whose keys are the long option names.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace pipeoptim::app {

// Keys and values of a file, in its order, values as they would be typed on the command line ("true", "0.1",
// "256,128").
using Settings = std::vector<std::pair<std::string, std::string>>;

// The table of what was not given, but chosen by the program: it holds as long as nothing else is asked for.
inline constexpr const char* kDefaultsTable = "defaults";

// Of settings that are each machine's own business and change no result but in its last bits: threads,
// folders, and the weights to start from.
bool is_local(const std::string& key);

struct Config {
  Settings given, defaults;
};

// Throws DataError when it cannot be read, std::invalid_argument (with the line) when it is not TOML or holds
// something that no option takes.
Config read_config(const std::string& path);

// A value as TOML text.
std::string toml_string(const std::string& text);
std::string toml_number(double value);
template <typename Number>
std::string toml_list(const std::vector<Number>& values) {
  std::string text;
  for (const Number value : values) {
    if (!text.empty()) text += ", ";
    if constexpr (std::is_floating_point_v<Number>) {
      text += toml_number(value);
    } else {
      text += std::to_string(value);
    }
  }
  return "[" + text + "]";
}

}  // namespace pipeoptim::app
