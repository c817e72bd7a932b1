// Fifty steps of a small network through four stages, which the program on CUDA is held to the host's by.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "tests/app/program.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {

using Arguments = std::vector<std::string>;

inline Arguments joined(Arguments first, const Arguments& more) {
  first.insert(first.end(), more.begin(), more.end());
  return first;
}

// One step changes little: the losses of two backends stay close over 50.
inline Arguments four_stages(const std::string& model, const std::string& method) {
  Arguments arguments = {"train",
                         "--model",
                         model,
                         "--method",
                         method,
                         "--hidden",
                         "24,20,16",
                         "--width",
                         "4",
                         "--stages",
                         "4",
                         "--steps",
                         "50",
                         "--batch-size",
                         "16",
                         "--no-shuffle",
                         "--optimizer",
                         "sgdm",
                         "--lr",
                         "0.0001",
                         "--limit-test",
                         "64"};
  return method == "gpipe" ? joined(arguments, {"--micro-batches", "4"}) : arguments;
}

// Of two logs: the lines of the steps.
inline void expect_close_losses(const std::vector<Json>& actual, const std::vector<Json>& expected) {
  ASSERT_EQ(expected.size(), 51U);
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t t = 0; t < 50; ++t) {
    const double loss = expected[t].at("loss");
    EXPECT_NEAR(actual[t].at("loss").get<double>(), loss, tolerance::kDeviceTrajectory * std::max(1.0, loss))
        << "step " << t;
  }
}

using ModelAndMethod = std::tuple<std::string, std::string>;

inline auto models_and_methods() {
  return testing::Combine(testing::Values("mlp", "cnn", "resnet20"),
                          testing::Values("pipeoptim", "pipedream", "gpipe"));
}
inline std::string name_of(const testing::TestParamInfo<ModelAndMethod>& test) {
  return std::get<0>(test.param) + "_" + std::get<1>(test.param);
}

}  // namespace pipeoptim::test
