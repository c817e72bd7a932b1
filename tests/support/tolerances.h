// Every tolerance of the tests, each with its reason. Comparisons without one are bit for bit.
#pragma once

namespace pipeoptim::tolerance {

// Optimizer rules in fp32 against a transcription in double: 200 steps of weights below 4 round by half an
// ulp (1.2e-7) each, and the hyper-parameters' own rounding (6e-8) moves a step by as much; errors add up as
// a random walk, 1e-5 is twice what a straight sum would need at the largest learning rate of the tests.
inline constexpr double kRuleSteps = 1e-5;

// A prediction of up to 8 steps against double: as one step, times the horizon.
inline constexpr double kPrediction = 1e-5;

// Sum of squares in fp32 over at most 256 terms an accumulator, then double: 256 * 6e-8 at worst, relative.
inline constexpr double kGradientNorm = 1.6e-5;

// A learning rate is computed in double and rounded to fp32 once, relative.
inline constexpr double kLearningRate = 1.2e-7;

}  // namespace pipeoptim::tolerance
