#include "pipeline/app/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "kernels/runtime/error.h"

namespace pipeoptim::app {
namespace {

std::string place(const std::string& path, const toml::source_region& source) {
  return path + ":" + std::to_string(source.begin.line) + ": ";
}

std::string scalar_text(const std::string& where, const std::string& key, const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (const auto* integer = node.as_integer()) return std::to_string(integer->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
  throw std::invalid_argument(where + "'" + key + "' must be a string, a number, true, false or a list");
}

std::string value_text(const std::string& path, const std::string& key, const toml::node& node) {
  const std::string where = place(path, node.source());
  const auto* list = node.as_array();
  if (list == nullptr) return scalar_text(where, key, node);
  std::string text;
  for (const toml::node& element : *list) {
    text += (text.empty() ? "" : ",") + scalar_text(where, key, element);
  }
  return text;
}

// Of a table, in the order of the file; but for a table within it that is named so.
Settings settings_of(const std::string& path, const toml::table& table, const std::string& but_for) {
  std::vector<std::pair<std::size_t, std::pair<std::string, std::string>>> found;
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (name == but_for && node.is_table()) continue;
    found.push_back({node.source().begin.line, {name, value_text(path, name, node)}});
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  Settings settings;
  for (auto& [line, setting] : found) settings.push_back(std::move(setting));
  return settings;
}

}  // namespace

bool is_local(const std::string& key) {
  return key == "threads" || key == "cpu-bind" || key == "data-dir" || key == "init";
}

Config read_config(const std::string& path) {
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad() || std::filesystem::is_directory(path)) {
    throw DataError("cannot read the config file " + path);
  }
  try {
    const toml::table table = toml::parse(text, path);
    const auto* defaults = table[kDefaultsTable].as_table();
    return {settings_of(path, table, kDefaultsTable),
            defaults == nullptr ? Settings{} : settings_of(path, *defaults, {})};
  } catch (const toml::parse_error& error) {
    throw std::invalid_argument(place(path, error.source()) + std::string(error.description()));
  }
}

std::string toml_string(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      quoted += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string toml_number(double value) {
  std::string text = fmt::format("{}", value);
  if (std::isfinite(value) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

}  // namespace pipeoptim::app
