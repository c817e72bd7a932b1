// The stage's part in an optimizer of matrices: which tensors are such, and the products of the layers'
// library.
#include <gtest/gtest.h>

#include "tests/optim/transcription.h"
#include "tests/support/small_mlp.h"
#include "tests/support/tolerances.h"

namespace pipeoptim::test {
namespace {

// One step from the initial weights, whose gradient is the same for every rule.
std::unique_ptr<Engine> stepped(const SmallMlp& mlp, const std::string& rule, float lr) {
  EngineConfig config;
  config.method = "sequential";
  config.optimizer.rule = rule;
  RandomBatches batches(1, mlp.records, mlp.widths.front(), mlp.widths.back());
  auto engine = mlp.engine(1, config);
  train_losses(*engine, batches, 1, lr);
  return engine;
}

TEST(MuonStage, StepsItsWeightsAlongTheirOrthogonalFactor) {
  const SmallMlp mlp;
  const float lr = 0.1F;
  const auto muon = stepped(mlp, "muon", lr), sgd = stepped(mlp, "sgd", 1), adamw = stepped(mlp, "adamw", lr);
  for (int l = 0; l < mlp.linears(); ++l) {
    const std::string layer = std::to_string(2 * l);
    EXPECT_EQ(muon->read_tensor(layer + ".bias"), adamw->read_tensor(layer + ".bias"));
    const auto columns = static_cast<std::size_t>(mlp.widths[static_cast<std::size_t>(l)]);
    const auto before = mlp.initial_weight(l), after = muon->read_tensor(layer + ".weight"),
               by_gradient = sgd->read_tensor(layer + ".weight");
    Rows gradient(before.size() / columns, std::vector<double>(columns));
    for (std::size_t i = 0; i < before.size(); ++i) {
      gradient[i / columns][i % columns] =
          static_cast<double>(before[i]) - static_cast<double>(by_gradient[i]);
    }
    const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(gradient.size(), columns)));
    const Rows factor = newton_schulz(gradient);
    for (std::size_t i = 0; i < before.size(); ++i) {
      const double moved = static_cast<double>(before[i]) - static_cast<double>(after[i]);
      ASSERT_NEAR(moved / (static_cast<double>(lr) * scale), factor[i / columns][i % columns],
                  tolerance::kFactorOfStep)
          << "layer " << l << " element " << i;
    }
  }
}

}  // namespace
}  // namespace pipeoptim::test
