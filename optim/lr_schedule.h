// Learning rates as a pure function of the step: any thread may ask for any step, which a prediction over
// coming steps needs.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace pipeoptim {

struct LrScheduleConfig {
  std::string kind = "constant";  // constant, step, multi-step, cosine, linear, polynomial
  double base_lr = 1e-3;
  std::int64_t warmup_steps = 0;              // linear from base/warmup_steps to base, for every kind
  std::int64_t total_steps = 0;               // cosine, linear, polynomial: where final_lr is reached
  std::int64_t step_size = 0;                 // step: times gamma every so many steps
  double gamma = 0.1;                         // step, multi-step
  std::vector<std::int64_t> milestones = {};  // multi-step: ascending steps, each times gamma
  double power = 1;                           // polynomial
  double final_lr = 0;                        // cosine, linear, polynomial; kept after total_steps
};

class LrSchedule {
 public:
  // Throws std::invalid_argument, naming the member at fault (the nearest kind for an unknown one).
  explicit LrSchedule(const LrScheduleConfig& config = {});

  // The rate of the step that follows `step` completed ones. Steps of `step` and `multi-step` are counted
  // from the start, warm-up included; the others anneal between the warm-up's end and total_steps.
  float at(std::int64_t step) const;

  // The rates of the steps first, first+1, ...: what a prediction over rates.size() steps takes.
  void next(std::int64_t first, std::span<float> rates) const;

  static const std::vector<std::string>& kinds();

 private:
  enum class Kind { kConstant, kStep, kMultiStep, kCosine, kLinear, kPolynomial };

  double after_warmup(std::int64_t step) const;

  LrScheduleConfig config_;
  Kind kind_ = Kind::kConstant;
};

}  // namespace pipeoptim
