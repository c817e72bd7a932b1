#include "pipeline/app/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pipeoptim::app {
namespace {

constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::seconds(5);

bool on_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDOUT_FILENO) == 1 && (term == nullptr || std::strcmp(term, "dumb") != 0);
}

std::size_t terminal_width() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

}  // namespace

Display choose_display(bool silent) {
  if (silent) return Display::kNone;
  return on_terminal() ? Display::kBar : Display::kLines;
}

Color choose_color(const std::string& option) {
  if (option == "always") return Color::kOn;
  const char* no_color = std::getenv("NO_COLOR");
  const bool refused = option == "none" || (no_color != nullptr && *no_color != '\0');
  return !refused && on_terminal() ? Color::kOn : Color::kOff;
}

Progress::Progress(Display display, Color color, std::int64_t steps, std::int64_t epochs)
    : display_(display), color_(color), steps_(steps), epochs_(epochs) {}

void Progress::step(const StepResult& step) {
  if (display_ == Display::kNone) return;
  ++done_;
  ++window_steps_;
  window_records_ += step.records;
  window_labels_ += step.labels;
  window_correct_ += step.correct;
  window_loss_ += step.loss;
  const auto now = Clock::now();
  const auto since = now - shown_;
  if (display_ == Display::kBar ? since < kBarInterval : since < kLineInterval) return;
  const double seconds = std::chrono::duration<double>(since).count();
  const double rate = static_cast<double>(window_records_) / seconds;
  // The bar is redrawn often: smooth what it shows.
  const double keep = display_ == Display::kBar && drawn_ ? 0.8 : 0;
  samples_per_second_ = keep * samples_per_second_ + (1 - keep) * rate;
  loss_ = keep * loss_ + (1 - keep) * window_loss_ / static_cast<double>(window_steps_);
  accuracy_ = keep * accuracy_ +
              (1 - keep) * static_cast<double>(window_correct_) / static_cast<double>(window_labels_);
  window_records_ = window_labels_ = window_correct_ = window_steps_ = 0;
  window_loss_ = 0;
  shown_ = now;
  show();
}

void Progress::show() {
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin_).count();
  const double left = elapsed * static_cast<double>(steps_ - done_) / static_cast<double>(done_);
  if (display_ == Display::kLines) {
    fmt::print("epoch {}/{}  step {}/{}  loss {:.4f}  accuracy {:.2f} %  {:.0f} samples/s  {} left\n", epoch_,
               epochs_, done_, steps_, loss_, 100 * accuracy_, samples_per_second_, duration(left));
  } else {
    const std::string text =
        fmt::format("epoch {}/{}  loss {:.4f}  accuracy {:.2f} %  {:.0f} samples/s  {} left", epoch_, epochs_,
                    loss_, 100 * accuracy_, samples_per_second_, duration(left));
    const std::size_t room = terminal_width() - 1;
    const std::size_t columns =
        room > text.size() + 5 ? std::min<std::size_t>(24, room - text.size() - 1) : 0;
    fmt::print("\r\033[K{}", columns > 0 ? bar(columns) + " " + text : text.substr(0, room));
    drawn_ = true;
  }
  std::fflush(stdout);
}

std::string Progress::bar(std::size_t columns) const {
  const auto filled = static_cast<std::size_t>(done_) * columns / static_cast<std::size_t>(steps_);
  std::string text;
  for (std::size_t i = 0; i < columns; ++i) text += i < filled ? "█" : "░";
  return paint("\033[36m", text);
}

std::string Progress::paint(const char* code, const std::string& text) const {
  return color_ == Color::kOn ? code + text + "\033[0m" : text;
}

void Progress::epoch(const EpochResult& epoch) {
  epoch_ = epoch.epoch + 1;
  if (display_ == Display::kNone) return;
  clear();
  const std::string test =
      epoch.test_accuracy
          ? fmt::format("  test loss {:.4f}  ", *epoch.test_loss) +
                paint("\033[1m", fmt::format("test accuracy {:.2f} %", 100 * *epoch.test_accuracy))
          : std::string();
  fmt::print("epoch {}/{}  train loss {:.4f}  train accuracy {:.2f} %{}  {:.0f} samples/s  {:.1f} s\n",
             epoch.epoch, epochs_, epoch.train_loss, 100 * epoch.train_accuracy, test,
             epoch.samples_per_second, epoch.seconds);
  std::fflush(stdout);
  shown_ = Clock::now();
  window_records_ = window_labels_ = window_correct_ = window_steps_ = 0;
  window_loss_ = 0;
}

void Progress::clear() {
  if (!drawn_) return;
  fmt::print("\r\033[K");
  std::fflush(stdout);
  drawn_ = false;
}

}  // namespace pipeoptim::app
