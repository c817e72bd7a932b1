// Every tolerance of the tests, each with its reason. Comparisons without one are bit for bit.
#pragma once

namespace pipeoptim::tolerance {

// Optimizer rules in fp32 against a transcription in double: each of 200 steps rounds a weight below 4 by at
// most 1.2e-7. All in one direction that is 2.4e-5, in random ones 14 * 1.2e-7 = 1.7e-6: the bound lies
// between, about twice the largest of 20011 elements that is seen (4e-6), far below any wrong term (1e-3).
inline constexpr double kRuleSteps = 1e-5;

// A prediction, or the steps to where it leads, against double or each other: up to 160 roundings of 1.2e-7
// as above.
inline constexpr double kPrediction = 1e-5;

// Sum of squares in fp32 over at most 256 terms an accumulator, then double: 256 * 6e-8 at worst, relative.
inline constexpr double kGradientNorm = 1.6e-5;

// A learning rate is computed in double and rounded to fp32 once, relative.
inline constexpr double kLearningRate = 1.2e-7;

// Losses of a training run in fp32 against double over some 20 steps: rounding errors of 1e-7 a value grow with the
// steps' sensitivity; a wrong weight version changes the loss in the third digit.
inline constexpr double kTrajectory = 1e-4;

}  // namespace pipeoptim::tolerance
