// The comparison as one HTML file: a table and two charts, drawn here, so that it opens anywhere.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "pipeline/app/comparison.h"

namespace pipeoptim::app {
namespace {

// Told apart by people with any colour vision (Okabe and Ito), then again with dashes.
constexpr std::array kColors = {"#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};
constexpr double kWidth = 760, kHeight = 340, kLeft = 60, kRight = 12, kTop = 12, kBottom = 40;

struct Point {
  double x, y;
};
struct Curve {
  std::size_t contender;
  std::vector<Point> points;
};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else {
      result += c;
    }
  }
  return result;
}

std::string stroke(std::size_t contender) {
  const bool dashed = contender >= kColors.size();
  return fmt::format("stroke=\"{}\"{}", kColors[contender % kColors.size()],
                     dashed ? " stroke-dasharray=\"6 3\"" : "");
}

// 1, 2 or 5 times a power of ten, about five to the range.
double tick_step(double range) {
  const double power = std::pow(10, std::floor(std::log10(range / 5)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (range / (factor * power) <= 6) return factor * power;
  }
  return 10 * power;
}

class Chart {
 public:
  explicit Chart(const std::vector<Curve>& curves) {
    for (const Curve& curve : curves) {
      for (const Point& point : curve.points) {
        most_x_ = std::max(most_x_, point.x);
        least_y_ = std::min(least_y_, point.y);
        most_y_ = std::max(most_y_, point.y);
      }
    }
    if (most_y_ < least_y_) least_y_ = most_y_ = 0;                       // no points
    if (most_y_ - least_y_ <= 1e-6 * std::max(1.0, std::abs(most_y_))) {  // flat but for rounding
      least_y_ -= 0.5;
      most_y_ += 0.5;
    }
  }

  std::string draw(const std::vector<Curve>& curves, const char* y_label) const {
    std::string svg =
        fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", kWidth, kHeight, y_label);
    svg += axes(y_label);
    for (const Curve& curve : curves) {
      svg +=
          fmt::format("<polyline fill=\"none\" stroke-width=\"1.6\" {} points=\"", stroke(curve.contender));
      for (const Point& point : curve.points) svg += fmt::format("{:.1f},{:.1f} ", x(point.x), y(point.y));
      svg += "\"/>\n";
    }
    return svg + "</svg>\n";
  }

 private:
  double x(double value) const { return kLeft + value / most_x_ * (kWidth - kLeft - kRight); }
  double y(double value) const {
    return kTop + (most_y_ - value) / (most_y_ - least_y_) * (kHeight - kTop - kBottom);
  }

  std::string axes(const char* y_label) const {
    std::string svg;
    const double bottom = kHeight - kBottom;
    const double y_step = tick_step(most_y_ - least_y_);
    for (double tick = std::ceil(least_y_ / y_step) * y_step; tick <= most_y_; tick += y_step) {
      svg += fmt::format(
          "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/><text text-anchor=\"end\" "
          "x=\"{}\" y=\"{:.1f}\">{:.4g}</text>\n",
          kLeft, kWidth - kRight, y(tick), y(tick), kLeft - 6, y(tick) + 4, tick);
    }
    const double x_step = tick_step(most_x_);
    for (double tick = 0; tick <= most_x_; tick += x_step) {
      svg += fmt::format("<text text-anchor=\"middle\" x=\"{:.1f}\" y=\"{}\">{:.6g}</text>\n", x(tick),
                         bottom + 16, tick);
    }
    return svg + fmt::format(
                     "<text text-anchor=\"middle\" x=\"{}\" y=\"{}\">step</text><text x=\"{}\" "
                     "y=\"{}\" transform=\"rotate(-90 14 {})\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 6, 14, (kTop + bottom) / 2, (kTop + bottom) / 2,
                     y_label);
  }

  double most_x_ = 1, least_y_ = 1e300, most_y_ = -1e300;
};

// The mean over the seeds, at most 400 points.
Curve loss_curve(const Contender& contender, std::size_t index) {
  Curve curve{index, {}};
  std::vector<double> mean;
  for (const ComparedRun& run : contender.runs) {
    const std::vector<double> losses = smoothed(run.losses);
    mean.resize(std::max(mean.size(), losses.size()), 0.0);
    for (std::size_t i = 0; i < losses.size(); ++i) {
      mean[i] += losses[i] / static_cast<double>(contender.runs.size());
    }
  }
  const std::size_t stride = std::max<std::size_t>(1, mean.size() / 400);
  for (std::size_t i = stride - 1; i < mean.size(); i += stride) {
    curve.points.push_back({static_cast<double>(i + 1), mean[i]});
  }
  return curve;
}

Curve accuracy_curve(const Contender& contender, std::size_t index) {
  Curve curve{index, {}};
  for (std::size_t i = 0; i < contender.runs.front().evaluations.size(); ++i) {
    double mean = 0;
    for (const ComparedRun& run : contender.runs) {
      mean += 100 * run.evaluations[i].accuracy / static_cast<double>(contender.runs.size());
    }
    curve.points.push_back({static_cast<double>(contender.runs.front().evaluations[i].step), mean});
  }
  return curve;
}

std::string legend(const std::vector<Contender>& contenders) {
  std::string html = "<p class=\"legend\">";
  for (std::size_t i = 0; i < contenders.size(); ++i) {
    html += fmt::format(
        "<span><svg class=\"key\" viewBox=\"0 0 24 8\"><line x1=\"0\" x2=\"24\" y1=\"4\" y2=\"4\" "
        "stroke-width=\"2\" {}/></svg> {}</span> ",
        stroke(i), escaped(contenders[i].label));
  }
  return html + "</p>\n";
}

constexpr const char* kStyle =
    "body{font:15px system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{overflow-x:auto;background:#f4f4f4;padding:.8rem}svg{width:100%;font-size:12px}"
    ".grid{stroke:#ddd}.key{width:24px;height:8px}.legend span{white-space:nowrap;margin-right:1rem}";

}  // namespace

std::string comparison_page(const Comparison& comparison) {
  std::vector<Contender> run;  // those that have results
  for (const Contender& contender : comparison.contenders) {
    if (!contender.runs.empty()) run.push_back(contender);
  }
  std::vector<Curve> losses, accuracies;
  for (std::size_t i = 0; i < run.size(); ++i) {
    losses.push_back(loss_curve(run[i], i));
    accuracies.push_back(accuracy_curve(run[i], i));
  }
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width\"><title>pipeoptim compare</title><style>{}</style></head><body>\n"
      "<h1>Comparison of methods</h1>\n<p>{}</p>\n<pre>{}</pre>\n{}<h2>Training loss</h2>\n{}"
      "<h2>Test accuracy</h2>\n{}</body></html>\n",
      kStyle, escaped(comparison.setting), escaped(comparison_table(comparison)), legend(run),
      Chart(losses).draw(losses, "training loss"), Chart(accuracies).draw(accuracies, "test accuracy, %"));
}

}  // namespace pipeoptim::app
