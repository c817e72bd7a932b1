#include "pipeline/app/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace pipeoptim::app {
namespace {

std::size_t smoothing_window(const std::vector<double>& losses) {
  return std::max<std::size_t>(1, losses.size() / 50);
}

// The first smoothed loss that is a mean over a whole window.
auto first_whole(const std::vector<double>& smoothed_losses) {
  const auto window = static_cast<std::ptrdiff_t>(smoothing_window(smoothed_losses));
  return smoothed_losses.empty() ? smoothed_losses.end() : smoothed_losses.begin() + window - 1;
}

template <typename Value>
std::vector<double> of_runs(const Contender& contender, const Value& value) {
  std::vector<double> values;
  for (const ComparedRun& run : contender.runs) values.push_back(value(run));
  return values;
}

std::string with_spread(const Spread& value, int digits) {
  return fmt::format("{:.{}f} ± {:.{}f}", value.mean, digits, value.deviation, digits);
}

// "-" as soon as one run did not get there.
std::string steps_text(const Contender& contender, double target_loss) {
  if (contender.runs.empty() || !contender.diverged.empty()) return "-";
  double sum = 0;
  for (const ComparedRun& run : contender.runs) {
    const std::optional<std::int64_t> steps = steps_to(run, target_loss);
    if (!steps) return "-";
    sum += static_cast<double>(*steps);
  }
  return fmt::format("{:.0f}", sum / static_cast<double>(contender.runs.size()));
}

template <typename T>
std::string list(const std::vector<T>& values, const char* separator) {
  return fmt::format("{}", fmt::join(values, separator));
}

}  // namespace

Spread spread(const std::vector<double>& values) {
  if (values.empty()) return {};
  Spread result;
  for (const double value : values) result.mean += value;
  result.mean /= static_cast<double>(values.size());
  if (values.size() < 2) return result;
  for (const double value : values) result.deviation += (value - result.mean) * (value - result.mean);
  result.deviation = std::sqrt(result.deviation / static_cast<double>(values.size() - 1));
  return result;
}

std::vector<double> smoothed(const std::vector<double>& losses) {
  const std::size_t window = smoothing_window(losses);
  std::vector<double> result;
  double sum = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    sum += losses[i];
    if (i >= window) sum -= losses[i - window];
    result.push_back(sum / static_cast<double>(std::min(i + 1, window)));
  }
  return result;
}

std::optional<std::int64_t> steps_to(const ComparedRun& run, double target_loss) {
  const std::vector<double> losses = smoothed(run.losses);
  const auto found =
      std::find_if(first_whole(losses), losses.end(), [&](double loss) { return loss <= target_loss; });
  if (found == losses.end()) return std::nullopt;
  return found - losses.begin() + 1;
}

double common_loss(const std::vector<Contender>& contenders) {
  double highest = 0;
  for (const Contender& contender : contenders) {
    for (const ComparedRun& run : contender.runs) {
      const std::vector<double> losses = smoothed(run.losses);
      if (!losses.empty()) highest = std::max(highest, *std::min_element(first_whole(losses), losses.end()));
    }
  }
  return highest;
}

std::string comparison_table(const Comparison& comparison) {
  std::size_t width = 6;
  for (const Contender& contender : comparison.contenders) width = std::max(width, contender.label.size());
  std::string text = fmt::format("{:<{}}  {:>15}  {:>15}  {:>10}  {:>8}  {:>8}  {:>11}\n", "method", width,
                                 "test accuracy %", fmt::format("steps to {:.3f}", comparison.target_loss),
                                 "samples/s", "bubble %", "versions", "peak MiB");
  for (const Contender& contender : comparison.contenders) {
    if (contender.runs.empty() && contender.diverged.empty()) continue;
    const auto column = [&](auto&& value) { return spread(of_runs(contender, value)); };
    const Spread accuracy =
        column([](const ComparedRun& run) { return 100 * run.evaluations.back().accuracy; });
    const auto most_versions =
        *std::max_element(contender.weight_versions.begin(), contender.weight_versions.end());
    const auto most_bytes = *std::max_element(contender.stage_bytes.begin(), contender.stage_bytes.end());
    text += fmt::format("{:<{}}  {:>15}  {:>15}  {:>10.1f}  {:>8.1f}  {:>8}  {:>11.1f}", contender.label,
                        width, contender.runs.empty() ? "-" : with_spread(accuracy, 2),
                        steps_text(contender, comparison.target_loss),
                        column([](const ComparedRun& run) { return run.samples_per_second; }).mean,
                        column([](const ComparedRun& run) { return 100 * run.bubble; }).mean, most_versions,
                        static_cast<double>(most_bytes) / (1 << 20));
    if (!contender.diverged.empty()) text += fmt::format("  {} diverged", contender.diverged.size());
    text += "\n";
  }
  return text +
         "steps to the training loss, mean of a fiftieth of the steps; versions and peak of the largest "
         "stage\n";
}

std::string comparison_csv(const Comparison& comparison) {
  std::string text =
      "method,seed,test_accuracy,test_loss,steps_to_target,samples_per_second,bubble,weight_versions,"
      "stage_bytes\n";
  for (const Contender& contender : comparison.contenders) {
    for (const ComparedRun& run : contender.runs) {
      const std::optional<std::int64_t> steps = steps_to(run, comparison.target_loss);
      text += fmt::format("{},{},{},{},{},{},{},{},{}\n", contender.label, run.seed,
                          run.evaluations.back().accuracy, run.evaluations.back().loss,
                          steps ? std::to_string(*steps) : std::string(), run.samples_per_second, run.bubble,
                          list(contender.weight_versions, ";"), list(contender.stage_bytes, ";"));
    }
    for (const DivergedRun& run : contender.diverged) {
      text += fmt::format("{},{},,diverged,,,,{},{}\n", contender.label, run.seed,
                          list(contender.weight_versions, ";"), list(contender.stage_bytes, ";"));
    }
  }
  return text;
}

std::string comparison_json(const Comparison& comparison) {
  using Json = nlohmann::ordered_json;
  Json all = {
      {"setting", comparison.setting}, {"target_loss", comparison.target_loss}, {"methods", Json::array()}};
  for (const Contender& contender : comparison.contenders) {
    Json runs = Json::array();
    for (const ComparedRun& run : contender.runs) {
      Json evaluations = Json::array();
      for (const auto& evaluation : run.evaluations) {
        evaluations.push_back(
            {{"step", evaluation.step}, {"accuracy", evaluation.accuracy}, {"loss", evaluation.loss}});
      }
      const std::optional<std::int64_t> steps = steps_to(run, comparison.target_loss);
      runs.push_back({{"seed", run.seed},
                      {"evaluations", evaluations},
                      {"steps_to_target", steps ? Json(*steps) : Json(nullptr)},
                      {"samples_per_second", run.samples_per_second},
                      {"bubble", run.bubble},
                      {"losses", run.losses}});
    }
    Json diverged = Json::array();
    for (const DivergedRun& run : contender.diverged) {
      diverged.push_back({{"seed", run.seed}, {"steps", run.steps}});
    }
    all["methods"].push_back({{"method", contender.label},
                              {"weight_versions", contender.weight_versions},
                              {"stage_bytes", contender.stage_bytes},
                              {"runs", runs},
                              {"diverged", diverged}});
  }
  return all.dump(1) + "\n";
}

}  // namespace pipeoptim::app
