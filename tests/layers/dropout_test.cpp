#include "layers/dropout.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/random.h"
#include "tests/support/planned_layer.h"

namespace pipeoptim {
namespace {

using test::planned;

// The known answers of Random123 1.14 (kat_vectors, philox4x32-10), first word.
TEST(Random, IsPhilox) {
  EXPECT_EQ(random_u32(0, 0, 0, 0), 0x6627e8d5U);
  EXPECT_EQ(random_u32(~0ULL, 0xffffffffU, 0xffffffffU, ~0ULL), 0x408f276dU);
  EXPECT_EQ(random_u32(0x299f31d0a4093822ULL, 0x13198a2eU, 0x03707344U, 0x85a308d3243f6a88ULL), 0xd16cfe09U);
}

const Shape kShape{40, 1000};

TEST(Dropout, DropsTheShareAndKeepsTheMean) {
  const double p = 0.3;
  auto layer = planned<Dropout>(kShape, {}, p);
  const auto y = layer.forward(std::vector<float>(40000, 1.0F));
  double dropped = 0;
  for (const float value : y) {
    if (value == 0) {
      ++dropped;
    } else {
      EXPECT_FLOAT_EQ(value, 1 / 0.7F);
    }
  }
  const double deviation = std::sqrt(40000 * p * (1 - p));
  EXPECT_NEAR(dropped, 40000 * p, 4 * deviation) << "four deviations of a binomial";
}

TEST(Dropout, BackwardDrawsTheSameMaskInAnyOrder) {
  auto layer = planned<Dropout>(kShape, {.threads = 2, .slots = 2}, 0.5);
  auto other = planned<Dropout>(kShape, {.slots = 2, .in_place = true}, 0.5);
  const std::vector<float> ones(40000, 1.0F);
  const auto first = layer.forward(ones, Mode::kTraining, 0);
  const auto second = layer.forward(ones, Mode::kTraining, 1);
  EXPECT_FALSE(test::same_bits(first, second)) << "each micro-batch has a mask of its own";
  EXPECT_TRUE(test::same_bits(layer.backward(ones, GradientMode::kStore, 0), first));
  EXPECT_TRUE(test::same_bits(layer.backward(ones, GradientMode::kStore, 1), second));
  EXPECT_TRUE(test::same_bits(other.forward(ones, Mode::kTraining, 1), second));
  EXPECT_TRUE(test::same_bits(other.backward(ones, GradientMode::kStore, 1), second));
  auto elsewhere = planned<Dropout>(kShape, {.random_layer = 1}, 0.5);
  EXPECT_FALSE(test::same_bits(elsewhere.forward(ones), first)) << "each layer has a mask of its own";
}

// The mask of an element does not depend on how many follow it.
TEST(Dropout, MasksEveryElementOfAnyNumber) {
  const auto whole = planned<Dropout>(Shape{1, 8}, {}, 0.5).forward(std::vector<float>(8, 1.0F));
  for (int count = 1; count < 8; ++count) {
    const auto size = static_cast<std::size_t>(count);
    const auto y = planned<Dropout>(Shape{1, count}, {}, 0.5).forward(std::vector<float>(size, 1.0F));
    EXPECT_TRUE(test::same_bits(y, std::span(whole).first(size))) << count;
  }
}

TEST(Dropout, IsTheIdentityInEvaluation) {
  const auto x = test::random_values(40000, 1);
  for (const bool in_place : {false, true}) {
    auto layer = planned<Dropout>(kShape, {.in_place = in_place}, 0.9);
    EXPECT_TRUE(test::same_bits(layer.forward(x, Mode::kEvaluation), x));
  }
}

TEST(Dropout, OfNothingIsTheIdentity) {
  const auto x = test::random_values(40000, 1);
  auto layer = planned<Dropout>(kShape, {}, 0.0);
  EXPECT_TRUE(test::same_bits(layer.forward(x), x));
}

TEST(Dropout, RefusesImpossibleProbabilities) {
  for (const double p : {-0.1, 1.0, 2.0, std::nan("")}) EXPECT_THROW(Dropout{p}, std::invalid_argument) << p;
}

}  // namespace
}  // namespace pipeoptim
