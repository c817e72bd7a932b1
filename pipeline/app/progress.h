// What the user sees while it trains: one line that renews itself on a terminal, plain lines otherwise.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#include "pipeline/engine.h"
#include "pipeline/trainer.h"

namespace pipeoptim::app {

enum class Display { kNone, kLines, kBar };
enum class Color { kOff, kOn };

// From --quiet, --json, --color, NO_COLOR, TERM and whether standard output is a terminal.
Display choose_display(bool silent);
Color choose_color(const std::string& option);

class Progress {
 public:
  Progress(Display display, Color color, std::int64_t steps, std::int64_t epochs);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepResult& step);
  void epoch(const EpochResult& epoch);
  void clear();  // takes the bar away, so that something else can be printed

 private:
  using Clock = std::chrono::steady_clock;

  void show();
  std::string bar(std::size_t columns) const;
  std::string paint(const char* code, const std::string& text) const;

  Display display_;
  Color color_;
  std::int64_t steps_, epochs_, done_ = 0, epoch_ = 1;
  std::int64_t window_records_ = 0, window_labels_ = 0, window_correct_ = 0, window_steps_ = 0;
  double window_loss_ = 0, loss_ = 0, accuracy_ = 0;
  double samples_per_second_ = 0;
  bool drawn_ = false;
  Clock::time_point begin_ = Clock::now(), shown_ = begin_;
};

}  // namespace pipeoptim::app
