// Small texts in files of their own, and runs on them.
#pragma once

#include <string>
#include <vector>

#include "tests/app/program.h"

namespace pipeoptim::test {

class TextsTest : public ProgramTest {
 protected:
  // Two words in a fixed order: what follows a space takes more than the letter before it to tell.
  std::string text_file() const {
    std::string text;
    for (int i = 0; i < 600; ++i) text += i % 7 < 4 ? "pipe " : "stage ";
    std::ofstream(scratch("words.txt")) << text;
    return scratch("words.txt");
  }
  std::string reviews_folder() const {
    const fs::path root = scratch("aclImdb");
    for (const char* split : {"train", "test"}) {
      for (const char* mood : {"pos", "neg"}) {
        fs::create_directories(root / split / mood);
        for (int i = 0; i < 24; ++i) {
          const std::string word = std::string(mood) == "pos" ? "good" : "bad";
          std::ofstream(root / split / mood / (std::to_string(i) + "_5.txt"))
              << "the film number " << i << " was " << word << " from the start, I say";
        }
      }
    }
    return root.string();
  }

  std::vector<std::string> on_text(const std::string& command, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {command};
    for (const char* option : {"--model=gpt", "--data=text", "--layers=2", "--features=16", "--heads=2",
                               "--sequence-length=16", "--batch-size=8", "--device=cpu"}) {
      arguments.push_back(option);
    }
    arguments.push_back("--data-dir=" + text_file());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::vector<std::string> on_reviews(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {"train"};
    for (const char* option : {"--model=lstm", "--data=imdb", "--layers=2", "--features=16",
                               "--vocabulary=40", "--sequence-length=12", "--batch-size=8", "--device=cpu"}) {
      arguments.push_back(option);
    }
    arguments.push_back("--data-dir=" + reviews_folder());
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
};

}  // namespace pipeoptim::test
