#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "kernels/runtime/names.h"

namespace pipeoptim {
namespace {

template <typename T>
void require(bool holds, const char* name, T value, const char* range) {
  if (!holds) {
    throw std::invalid_argument(std::string("learning-rate schedule: ") + name + " is " +
                                std::to_string(value) + ", not " + range);
  }
}

void require_rate(const char* name, double value) {
  require(value >= 0 && std::isfinite(value), name, value, "a finite number from 0");
}

}  // namespace

const std::vector<std::string>& LrSchedule::kinds() {
  static const std::vector<std::string> names = {"constant", "step",   "multi-step",
                                                 "cosine",   "linear", "polynomial"};
  return names;
}

LrSchedule::LrSchedule(const LrScheduleConfig& config) : config_(config) {
  const auto found = std::find(kinds().begin(), kinds().end(), config.kind);
  if (found == kinds().end()) {
    throw std::invalid_argument(unknown_name("learning-rate schedule", config.kind, kinds()));
  }
  kind_ = static_cast<Kind>(found - kinds().begin());
  require_rate("base_lr", config.base_lr);
  require(config.warmup_steps >= 0, "warmup_steps", config.warmup_steps, "from 0");
  switch (kind_) {
    case Kind::kConstant:
      return;
    case Kind::kStep:
      require_rate("gamma", config.gamma);
      require(config.step_size > 0, "step_size", config.step_size, "positive");
      return;
    case Kind::kMultiStep: {
      require_rate("gamma", config.gamma);
      std::int64_t before = -1;
      for (const std::int64_t milestone : config.milestones) {
        require(milestone > before, "milestones' entry", milestone, "above the one before (from 0)");
        before = milestone;
      }
      return;
    }
    case Kind::kPolynomial:
      require(config.power > 0 && std::isfinite(config.power), "power", config.power, "a positive number");
      [[fallthrough]];
    case Kind::kCosine:
    case Kind::kLinear:
      require_rate("final_lr", config.final_lr);
      require(config.total_steps > config.warmup_steps, "total_steps", config.total_steps,
              "above warmup_steps");
      return;
  }
}

float LrSchedule::at(std::int64_t step) const {
  require(step >= 0, "step", step, "from 0");
  if (step < config_.warmup_steps) {
    return static_cast<float>(config_.base_lr * static_cast<double>(step + 1) /
                              static_cast<double>(config_.warmup_steps));
  }
  return static_cast<float>(after_warmup(step));
}

void LrSchedule::next(std::int64_t first, std::span<float> rates) const {
  for (std::size_t i = 0; i < rates.size(); ++i) rates[i] = at(first + static_cast<std::int64_t>(i));
}

double LrSchedule::after_warmup(std::int64_t step) const {
  const double base = config_.base_lr, last = config_.final_lr;
  const double length = static_cast<double>(config_.total_steps - config_.warmup_steps);
  const double progress = std::min(1.0, static_cast<double>(step - config_.warmup_steps) / length);
  switch (kind_) {
    case Kind::kConstant:
      return base;
    case Kind::kStep:
      return base * std::pow(config_.gamma, static_cast<double>(step / config_.step_size));
    case Kind::kMultiStep: {
      const auto passed = std::upper_bound(config_.milestones.begin(), config_.milestones.end(), step);
      return base * std::pow(config_.gamma, static_cast<double>(passed - config_.milestones.begin()));
    }
    case Kind::kCosine:
      return last + (base - last) * (1 + std::cos(std::numbers::pi * progress)) / 2;
    case Kind::kLinear:
      return base + (last - base) * progress;
    case Kind::kPolynomial:
      return last + (base - last) * std::pow(1 - progress, config_.power);
  }
  return base;
}

}  // namespace pipeoptim
