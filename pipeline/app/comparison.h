// What `pipeoptim compare` gathers, and the forms in which it shows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pipeoptim::app {

struct ComparedRun {
  std::uint64_t seed = 0;
  std::vector<double> losses;  // of training, by step
  struct Evaluation {
    std::int64_t step;
    double accuracy, loss;
  };
  std::vector<Evaluation> evaluations;  // the last is the result
  double samples_per_second = 0;        // training time only
  double bubble = 0;                    // idle part of a worker's time, mean over workers
};

// A run that its loss ended.
struct DivergedRun {
  std::uint64_t seed = 0;
  std::int64_t steps = 0;
};

struct Contender {
  std::string label;
  std::vector<int> weight_versions;      // by stage, the live weights included
  std::vector<std::size_t> stage_bytes;  // by stage, everything that is allocated
  std::vector<ComparedRun> runs;         // those that came to their end, one a seed
  std::vector<DivergedRun> diverged;
};

struct Comparison {
  std::string setting;  // model, data, optimizer, ..., in one line
  std::vector<Contender> contenders;
  double target_loss = 0;
};

struct Spread {
  double mean = 0, deviation = 0;  // of the sample; 0 for one value
};
Spread spread(const std::vector<double>& values);

// The mean of the last fiftieth of the steps, up to each step (of fewer at the start): what "training loss"
// means in a comparison.
std::vector<double> smoothed(const std::vector<double>& losses);

// The first step whose smoothed loss is at most the target.
std::optional<std::int64_t> steps_to(const ComparedRun& run, double target_loss);

// The lowest smoothed loss that every run reaches.
double common_loss(const std::vector<Contender>& contenders);

std::string comparison_table(const Comparison& comparison);  // for people
std::string comparison_csv(const Comparison& comparison);    // one line a run
std::string comparison_json(const Comparison& comparison);   // with all curves
std::string comparison_page(const Comparison& comparison);   // HTML that needs nothing else

}  // namespace pipeoptim::app
