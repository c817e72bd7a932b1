// The Large Movie Review Dataset: reviews that are positive or negative. Maas et al., ACL 2011.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "models/data/dataset.h"

namespace pipeoptim {

// Lower-case words: runs of letters, digits, apostrophes and bytes beyond ASCII. What stands in <angle
// brackets> is markup and separates words.
std::vector<std::string> words_of(std::string_view text);

struct ReviewOptions {
  std::int64_t sequence_length = 64;
  std::int64_t vocabulary =
      20000;  // tokens in all: padding (0), unknown word (1), and the most frequent training words
};

// Reads {train,test}/{neg,pos}/*.txt of the folder, of its subfolder aclImdb, or of a file aclImdb*.tar.gz in
// it (or `place` itself); negative (0) and positive (1) reviews take turns in the order of their names. A
// review longer than sequence_length keeps its last words, a shorter one begins with padding. Throws
// DataError.
Dataset read_imdb(const std::filesystem::path& place, Split split, const ReviewOptions& options);

}  // namespace pipeoptim
