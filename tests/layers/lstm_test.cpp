#include "layers/lstm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "tests/support/finite_difference.h"
#include "tests/support/halves.h"
#include "tests/support/tolerances.h"

namespace pipeoptim {
namespace {

using test::planned;
using test::PlannedLayer;
using test::random_values;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// PyTorch's formulas in double, one value at a time; backward through time.
struct Naive {
  std::vector<double> y, dx, dw_input, dw_hidden, db;
  std::size_t records, length, in, hidden;

  Naive(const Shape& shape, std::size_t hidden_units, PlannedLayer& layer, const std::vector<float>& x,
        const std::vector<float>& dy)
      : records(static_cast<std::size_t>(shape[0])),
        length(static_cast<std::size_t>(shape[1])),
        in(static_cast<std::size_t>(shape[2])),
        hidden(hidden_units) {
    const std::span<const float> w = layer.weights(0), u = layer.weights(1);
    y.resize(records * length * hidden);
    dx.resize(x.size());
    dw_input.resize(w.size());
    dw_hidden.resize(u.size());
    db.resize(4 * hidden);
    for (std::size_t n = 0; n < records; ++n) {
      std::vector<double> gates(length * 4 * hidden), cells(length * hidden);
      for (std::size_t t = 0; t < length; ++t) step(n, t, layer, x, gates, cells);
      std::vector<double> dh(hidden), dc(hidden);
      for (std::size_t t = length; t-- > 0;) step_back(n, t, layer, x, dy, gates, cells, dh, dc);
    }
  }

  void step(std::size_t n, std::size_t t, PlannedLayer& layer, const std::vector<float>& x,
            std::vector<double>& gates, std::vector<double>& cells) {
    double* const gate = &gates[t * 4 * hidden];
    for (std::size_t r = 0; r < 4 * hidden; ++r) {
      double sum = static_cast<double>(layer.weights(2)[r]) + static_cast<double>(layer.weights(3)[r]);
      for (std::size_t c = 0; c < in; ++c)
        sum += static_cast<double>(layer.weights(0)[r * in + c]) *
               static_cast<double>(x[(n * length + t) * in + c]);
      for (std::size_t c = 0; t > 0 && c < hidden; ++c)
        sum += static_cast<double>(layer.weights(1)[r * hidden + c]) * y[(n * length + t - 1) * hidden + c];
      gate[r] = r / hidden == 2 ? std::tanh(sum) : sigmoid(sum);
    }
    for (std::size_t j = 0; j < hidden; ++j) {
      const double before = t > 0 ? cells[(t - 1) * hidden + j] : 0;
      cells[t * hidden + j] = gate[hidden + j] * before + gate[j] * gate[2 * hidden + j];
      y[(n * length + t) * hidden + j] = gate[3 * hidden + j] * std::tanh(cells[t * hidden + j]);
    }
  }

  void step_back(std::size_t n, std::size_t t, PlannedLayer& layer, const std::vector<float>& x,
                 const std::vector<float>& dy, const std::vector<double>& gates,
                 const std::vector<double>& cells, std::vector<double>& dh, std::vector<double>& dc) {
    const double* const gate = &gates[t * 4 * hidden];
    std::vector<double> sums(4 * hidden);
    for (std::size_t j = 0; j < hidden; ++j) {
      const double gradient = dh[j] + static_cast<double>(dy[(n * length + t) * hidden + j]);
      const double i = gate[j], f = gate[hidden + j], g = gate[2 * hidden + j], o = gate[3 * hidden + j];
      const double bent = std::tanh(cells[t * hidden + j]);
      const double of_cell = dc[j] + gradient * o * (1 - bent * bent);
      const double before = t > 0 ? cells[(t - 1) * hidden + j] : 0;
      sums[j] = of_cell * g * i * (1 - i);
      sums[hidden + j] = of_cell * before * f * (1 - f);
      sums[2 * hidden + j] = of_cell * i * (1 - g * g);
      sums[3 * hidden + j] = gradient * bent * o * (1 - o);
      dc[j] = of_cell * f;
      dh[j] = 0;
    }
    for (std::size_t r = 0; r < 4 * hidden; ++r) {
      db[r] += sums[r];
      for (std::size_t c = 0; c < in; ++c) {
        const std::size_t at = (n * length + t) * in + c;
        dw_input[r * in + c] += sums[r] * static_cast<double>(x[at]);
        dx[at] += sums[r] * static_cast<double>(layer.weights(0)[r * in + c]);
      }
      for (std::size_t c = 0; t > 0 && c < hidden; ++c) {
        dw_hidden[r * hidden + c] += sums[r] * y[(n * length + t - 1) * hidden + c];
        dh[c] += sums[r] * static_cast<double>(layer.weights(1)[r * hidden + c]);
      }
    }
  }
};

struct Case {
  Shape input;
  std::int64_t hidden;
  int threads;
};

class LstmTest : public testing::TestWithParam<Case> {};

TEST_P(LstmTest, MatchesLoopsInDouble) {
  const auto& [shape, hidden, threads] = GetParam();
  auto layer = planned<Lstm>(shape, {.threads = threads}, shape.last(), hidden);
  EXPECT_EQ(layer.plan().output, (Shape{shape[0], shape[1], hidden}));
  const auto x = random_values(shape.elements(), 1), dy = random_values(layer.plan().output.elements(), 2);
  const Naive naive(shape, static_cast<std::size_t>(hidden), layer, x, dy);
  EXPECT_LT(test::relative_error(layer.forward(x), naive.y), tolerance::kLstm);
  EXPECT_LT(test::relative_error(layer.backward(dy), naive.dx), tolerance::kLstm);
  EXPECT_LT(test::relative_error(layer.gradients(0), naive.dw_input), tolerance::kLstm);
  EXPECT_LT(test::relative_error(layer.gradients(1), naive.dw_hidden), tolerance::kLstm);
  EXPECT_LT(test::relative_error(layer.gradients(2), naive.db), tolerance::kLstm);
  EXPECT_TRUE(test::same_bits(layer.gradients(2), layer.gradients(3)));
  layer.backward(dy, GradientMode::kAdd);
  const std::vector<double>* once[] = {&naive.dw_input, &naive.dw_hidden, &naive.db, &naive.db};
  for (std::size_t p = 0; p < 4; ++p) {
    std::vector<double> twice = *once[p];
    for (double& value : twice) value *= 2;
    EXPECT_LT(test::relative_error(layer.gradients(p), twice), tolerance::kLstm) << p;
  }
}

TEST_P(LstmTest, HalvesMayRunApart) {
  const auto& [shape, hidden, threads] = GetParam();
  test::expect_same_halves([in = shape.last(), units = hidden] { return std::make_unique<Lstm>(in, units); },
                           shape, random_values(shape.elements(), 3), random_values(shape.elements(), 4));
}

INSTANTIATE_TEST_SUITE_P(Shapes, LstmTest,
                         testing::Values(Case{{1, 1, 3}, 2, 1}, Case{{4, 6, 5}, 7, 1},
                                         Case{{3, 9, 16}, 16, 2}, Case{{2, 20, 8}, 40, 2}));

TEST(Lstm, MatchesDifferences) {
  auto layer = planned<Lstm>(Shape{2, 4, 3}, {}, 3, 5);
  EXPECT_LT(test::gradient_error(layer, random_values(24, 5)), tolerance::kFiniteDifference);
}

TEST(Lstm, HasPyTorchsParameters) {
  const auto parameters = Lstm(3, 4).parameters();
  ASSERT_EQ(parameters.size(), 4U);
  EXPECT_EQ(parameters[0].name, "weight_ih_l0");
  EXPECT_EQ(parameters[0].shape, (Shape{16, 3}));
  EXPECT_EQ(parameters[1].name, "weight_hh_l0");
  EXPECT_EQ(parameters[1].shape, (Shape{16, 4}));
  EXPECT_EQ(parameters[3].name, "bias_hh_l0");
  for (const Parameter& parameter : parameters)
    EXPECT_EQ(parameter.initializer.value, 0.5F) << parameter.name;
}

TEST(Lstm, NamesWrongNumbers) {
  EXPECT_THROW(Lstm(0, 4), std::invalid_argument);
  EXPECT_THROW(Lstm(4, 0), std::invalid_argument);
  Lstm layer(3, 4);
  try {
    layer.plan(Device::host(), 1, {2, 3});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("lstm 3 -> 4"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("got 2x3"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace pipeoptim
