// What is Muon's alone: directions are orthogonal, whichever side is longer, and other tensors are AdamW's.
#include <gtest/gtest.h>

#include "tests/optim/optimizer_run.h"
#include "tests/optim/transcription.h"

namespace pipeoptim::test {
namespace {

OptimizerArena one_matrix(std::int64_t rows, std::int64_t columns) {
  return {.elements = rows * columns, .groups = {}, .names = {{"w", 0, rows * columns, rows}}};
}

Rows rows_of(const std::vector<float>& values, std::int64_t rows) {
  const std::size_t columns = values.size() / static_cast<std::size_t>(rows);
  Rows matrix;
  for (std::size_t i = 0; i < static_cast<std::size_t>(rows); ++i) {
    matrix.emplace_back(values.begin() + static_cast<std::ptrdiff_t>(i * columns),
                        values.begin() + static_cast<std::ptrdiff_t>((i + 1) * columns));
  }
  return matrix;
}

// The iteration drives singular values of a random matrix to between 0.6 and 1.3, not to 1: its coefficients
// trade exactness for speed. Every row of the shorter side then has a norm between these.
TEST(Muon, MakesDirectionsNearlyOrthogonal) {
  for (const auto& [rows, columns] :
       {std::pair{8, 60}, std::pair{60, 8}, std::pair{1, 50}, std::pair{50, 1}}) {
    OptimizerRun run({.rule = "muon", .muon_scale = MuonScale::kOriginal}, one_matrix(rows, columns));
    run.set_gradients(normal_values(rows * columns, 3));
    run.update(0.01f);
    Rows direction = rows_of(run.slot(1), rows);
    if (rows > columns) direction = transposed(direction);
    const double scale = std::max(1.0, double(rows) / columns);
    const Rows gram = product(direction, transposed(direction));
    for (std::size_t i = 0; i < gram.size(); ++i) {
      EXPECT_GT(gram[i][i] / scale, 0.6 * 0.6) << rows << " x " << columns;
      EXPECT_LT(gram[i][i] / scale, 1.3 * 1.3) << rows << " x " << columns;
      for (std::size_t j = 0; j < i; ++j) EXPECT_LT(std::abs(gram[i][j] / scale), 0.4);
    }
  }
}

TEST(Muon, ScalesToAdamsLengthUnlessAskedOtherwise) {
  OptimizerRun adams({.rule = "muon"}, one_matrix(20, 5));
  OptimizerRun original({.rule = "muon", .muon_scale = MuonScale::kOriginal}, one_matrix(20, 5));
  for (OptimizerRun* run : {&adams, &original}) {
    run->set_gradients(normal_values(100, 1));
    run->update(0.01f);
  }
  const auto a = adams.slot(1), b = original.slot(1);
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(a[i] / (0.2 * std::sqrt(20.0)), b[i] / 2.0, 1e-6) << "sqrt(20 / 5) = 2";
  }
}

TEST(Muon, LeavesAMatrixOfZeroGradientsWhereItIs) {
  OptimizerRun run({.rule = "muon"}, one_matrix(6, 7));
  const auto before = run.weights();
  run.update_predict(0.01f, {0.01f});
  EXPECT_TRUE(same_bits(run.weights(), before));
  EXPECT_TRUE(same_bits(run.predicted(), before));
}

TEST(Muon, IsAdamWForWhatIsNoMatrix) {
  OptimizerConfig config = lively_config("muon");
  OptimizerRun muon(config, uneven_arena());
  config.rule = "adamw";
  OptimizerRun adamw(config, uneven_arena());
  for (std::uint32_t step = 0; step < 3; ++step) {
    for (OptimizerRun* run : {&muon, &adamw}) {
      run->set_gradients(normal_values(20011, step));
      run->update_predict(0.01f, {0.01f, 0.02f});
    }
  }
  auto a = muon.weights(), b = adamw.weights(), c = muon.predicted(), d = adamw.predicted();
  for (auto* values : {&a, &b, &c, &d}) values->resize(kMatrixBegin);
  EXPECT_TRUE(same_bits(a, b));
  EXPECT_TRUE(same_bits(c, d));
}

// Several matrices share the memory of the iteration, beside gaps and a group's border inside of one.
TEST(Muon, WorksOnEachMatrixAlone) {
  OptimizerArena together{.elements = 1200, .groups = {{0, 700, true}, {700, 1200, false}}, .names = {}};
  together.names = {{"late", 600, 1000, 40}, {"early", 10, 310, 10}};
  OptimizerRun run({.rule = "muon", .weight_decay = 0.1}, together);
  const auto gradients = normal_values(1200, 4);
  run.set_gradients(gradients);
  run.update(0.01f);
  for (const NamedRange& range : together.names) {
    const std::int64_t elements = range.end - range.begin;
    OptimizerRun alone({.rule = "muon"}, one_matrix(range.rows, elements / range.rows));
    const auto part = [&](const std::vector<float>& values) {
      return std::vector<float>(values.begin() + range.begin, values.begin() + range.end);
    };
    alone.set_gradients(part(gradients));
    alone.update(0.01f);
    EXPECT_TRUE(same_bits(part(run.slot(1)), alone.slot(1))) << range.name;
  }
  const auto weights = run.weights(), before = normal_values(1200, 7), direction = run.slot(1);
  for (const std::size_t i : {std::size_t{699}, std::size_t{700}}) {
    EXPECT_EQ(weights[i], before[i] - (0.01f * (i < 700 ? 0.1f : 0.0f)) * before[i] - 0.01f * direction[i]);
  }
}

TEST(Muon, RefusesMatricesThatOverlap) {
  OptimizerArena arena{.elements = 100, .groups = {}, .names = {}};
  arena.names = {{"a", 0, 50, 5}, {"b", 40, 60, 2}};
  EXPECT_THROW(OptimizerRun({.rule = "muon"}, arena), std::invalid_argument);
}

TEST(Muon, NeedsAProductForItsMatricesOnly) {
  EXPECT_THROW(make_optimizer(Device::host(), {.rule = "muon"}, one_matrix(4, 5)), std::invalid_argument);
  EXPECT_NO_THROW(make_optimizer(Device::host(), {.rule = "muon"}, plain_arena()));
}

TEST(Muon, TellsItsWorkspace) {
  OptimizerArena arena{.elements = 1000, .groups = {}, .names = {}};
  arena.names = {{"a", 0, 400, 4}, {"b", 400, 700, 30}};
  EXPECT_EQ(optimizer_workspace_bytes({.rule = "muon"}, arena), 2 * (400 + 10 * 10) * sizeof(float));
  EXPECT_EQ(optimizer_workspace_bytes({.rule = "adamw"}, arena), 0);
}

}  // namespace
}  // namespace pipeoptim::test
