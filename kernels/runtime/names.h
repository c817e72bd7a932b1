// Names that users type (rules, layers, methods, keys): as lists, as values, and the nearest known one, for
// messages.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace pipeoptim {

// Edits (insert, remove, replace a character) that turn one text into the other.
inline std::size_t edit_distance(std::string_view from, std::string_view to) {
  std::vector<std::size_t> row(to.size() + 1);
  for (std::size_t j = 0; j <= to.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= from.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= to.size(); ++j) {
      const std::size_t replaced = diagonal + (from[i - 1] == to[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[to.size()];
}

// The candidate with the fewest edits (the first of several); empty when there is no candidate.
inline std::string nearest_name(std::string_view name, std::span<const std::string> candidates) {
  std::string nearest;
  std::size_t fewest = 0;
  for (const std::string& candidate : candidates) {
    const std::size_t edits = edit_distance(name, candidate);
    if (nearest.empty() || edits < fewest) {
      nearest = candidate;
      fewest = edits;
    }
  }
  return nearest;
}

// "A, B, C"
inline std::string join_names(std::span<const std::string> names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// "unknown WHAT 'NAME'; did you mean 'NEAREST'? known: A, B, C"
inline std::string unknown_name(std::string_view what, std::string_view name,
                                std::span<const std::string> candidates) {
  std::string message = "unknown " + std::string(what) + " '" + std::string(name) + "'";
  if (candidates.empty()) return message;
  return message + "; did you mean '" + nearest_name(name, candidates) +
         "'? known: " + join_names(candidates);
}

// The value of an enumeration whose names are given in its order. Throws std::invalid_argument.
template <typename Enumeration>
Enumeration value_named(std::string_view what, const std::string& name, std::span<const std::string> names) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument(unknown_name(what, name, names));
  return static_cast<Enumeration>(found - names.begin());
}

}  // namespace pipeoptim
