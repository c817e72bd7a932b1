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

// An orthogonal factor made of a gradient that is known from a step of the weights, to 1e-7 of a weight or
// some 1e-5 of the gradient; the iteration amplifies what is small by up to 3.4445^5 = 485. Entries are of
// size 0.3.
inline constexpr double kFactorOfStep = 1e-2;

// Sum of squares in fp32 over at most 256 terms an accumulator, then double: 256 * 6e-8 at worst, relative.
inline constexpr double kGradientNorm = 1.6e-5;

// A learning rate is computed in double and rounded to fp32 once, relative.
inline constexpr double kLearningRate = 1.2e-7;

// Losses of a training run in fp32 against double over some 20 steps: rounding errors of 1e-7 a value grow
// with the steps' sensitivity; a wrong weight version changes the loss in the third digit.
inline constexpr double kTrajectory = 1e-4;

// The same over 50 small steps of networks with batch norm on two backends, both fp32: sums in other orders
// start at 1e-7, each activation that changes sides adds to it (seen: 4e-4). The steps move the loss by 5e-2.
inline constexpr double kDeviceTrajectory = 1e-3;

// A sum of products in fp32 against double, relative to the sum of the absolute values of its terms. Blocked
// sums of up to 20000 terms keep a few dozen roundings of 6e-8 on each path (seen: 2.5e-7); one missing
// or doubled term of n changes it by about 1/n, far more at the sizes of these tests.
inline constexpr double kFp32Product = 2e-6;

// Central differences through an fp32 forward of a layer that is linear in what moves, with a step of 1/4: no
// truncation error, roundings of 6e-8 over the step, relative to the sum of the loss's absolute terms (seen:
// a sixth of it).
inline constexpr double kLinearDifference = 2.4e-7;

// A layer's gradient against the five-point difference (step 1/32) of a loss of up to some 300 fp32 outputs
// of size 1: their roundings, 6e-8 * sqrt(300) = 1e-6 a loss, over the step make 4e-5; the stencil's own
// error is 1e-6 times the fifth derivative. Relative to the largest gradient; a wrong term is 1e-2 and more.
inline constexpr double kFiniteDifference = 5e-4;

// Element-wise layers and pooling against double: a few roundings of 6e-8 and 2 ulp of expf, tanhf and erff,
// relative to the largest value.
inline constexpr double kElementwise = 1e-6;

// GELU and its slope on values in bf16, before they are rounded: cubics over pieces of width h = 0.1875 that
// meet the function at Chebyshev's nodes are off by at most (h / 2)^4 / (4! 2^3) of its fourth derivative,
// which is below 3: 1.2e-6, and some roundings of 6e-8.
inline constexpr double kBf16Gelu = 2e-6;

// Batch norm against double: the mean of a channel whose values are up to 4 deviations from 0 loses some 6e-8
// a chunk, the line y = scale x + shift three roundings of values near 4. Relative to the largest value.
inline constexpr double kBatchNorm = 3e-6;

// Layer norm against double: two means of up to 256 values in 16 partial sums and three roundings of values
// near 4; the gradients of weight and bias are sums of up to 70 rows. Relative to the largest value
// (seen: 2.6e-7).
inline constexpr double kLayerNorm = 1.5e-6;

// The same around 4096, where fp32 values of the input and their mean are 5e-4 apart: an error of the mean of
// half of that, over a deviation of 1. Cancelling squares would be off by more than 1.
inline constexpr double kFarMean = 5e-4;

// Attention against double, four products one behind the other: probabilities off by some 3e-7 times the size
// of a score (up to 10 here), sums of up to 450 rows behind them. Relative to the largest value (seen: 8e-7);
// a missing term is 1e-3 and more.
inline constexpr double kAttention = 4e-6;

// Attention in bf16 against double with the same factors rounded: a value that lies at the middle between two
// of bf16 may end at the other one, 2^-8 of it away, in each of the arrays that are rounded one behind the
// other. Where none does, all but fp32's roundings are the same (seen: 1e-7); with some, 1e-3. Relative to
// the largest value; a missing term is 1e-2 and more.
inline constexpr double kBf16Attention = 4e-3;

// An LSTM of up to 20 steps against double: each gate is off by 2e-7 and what it decides is handed on from
// step to step. Relative to the largest value (seen: 4e-7); a wrong gate is 1e-2 and more.
inline constexpr double kLstm = 2e-6;

// One layer on two backends, both fp32: sums of up to a few thousand products in other orders, functions of
// 2 ulp; relative to the largest value. A missing term is 1e-3 and more at the sizes of these tests.
inline constexpr double kDeviceLayer = 1e-5;

// The same with factors rounded to 10 bits of mantissa: two roundings of 4.9e-4 a product, which partly
// cancel in a sum, relative to the largest value.
inline constexpr double kTf32Layer = 1e-3;

// A convolution in bf16 where cuDNN gives results in bf16 only: one more rounding, to 8 significant bits, of
// up to 2^-8 of a value. Relative to the largest value.
inline constexpr double kBf16Result = 4e-3;

// Layers with products one behind the other in bf16 on two backends. CUDA rounds factors that the host keeps:
// scores of up to 30 from factors that are off by 2^-8 decide probabilities to 6 % (seen in gradients: 2 % of
// the largest value), the gates of an LSTM far better. Relative to the largest value.
inline constexpr double kBf16Layer = 5e-2;

// Softmax and its loss against double: the sum of up to 100 exponentials of 1 ulp each, then one logarithm.
inline constexpr double kSoftmax = 3e-6;

}  // namespace pipeoptim::tolerance
