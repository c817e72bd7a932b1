// What a data set consists of, and what a model is made for.
#pragma once

#include <string>

namespace pipeoptim {

enum class DataKind {
  kImages,      // images with a class each
  kTexts,       // sequences of tokens with a class each
  kRunningText  // sequences of tokens, each position labelled with the token that follows
};

inline std::string describe(DataKind kind) {
  if (kind == DataKind::kImages) return "images with a class each";
  return kind == DataKind::kTexts ? "texts with a class each" : "running text";
}

}  // namespace pipeoptim
