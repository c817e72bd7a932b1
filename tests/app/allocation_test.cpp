// The training loop allocates nothing: every operator new on any thread is counted between two mini-batches
// of one pass, but for those inside oneDNN, whose primitives collect their arguments in maps of their own.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/softmax_cross_entropy.h"
#include "models/data/dataset.h"
#include "models/data/loader.h"
#include "models/partition.h"
#include "models/zoo.h"
#include "pipeline/app/loader_source.h"
#include "pipeline/engine.h"

namespace {

std::atomic<std::int64_t> allocations{0};

bool within_onednn(const void* caller) {
  Dl_info info;
  if (dladdr(caller, &info) == 0 || !info.dli_fname) return false;
  return std::string_view(info.dli_fname).find("libdnnl") != std::string_view::npos;
}

void* counted(std::size_t bytes, std::size_t alignment, const void* caller) {
  if (!within_onednn(caller)) allocations.fetch_add(1, std::memory_order_relaxed);
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

// Not inlined: where g++ sees only one of a pair, it takes free() for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  return counted(bytes, alignof(std::max_align_t), __builtin_return_address(0));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment), __builtin_return_address(0));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace pipeoptim::test {
namespace {

class Allocation : public testing::TestWithParam<const char*> {};

TEST_P(Allocation, NoneBetweenMiniBatches) {
  constexpr int kStages = 3, kMinibatches = 60, kWarm = 20;
  constexpr std::int64_t kBatch = 8;
  auto data = std::make_shared<Dataset>(load_dataset("synthetic", "", Split::kTrain));
  Loader loader(data,
                {.batch = kBatch, .order = Order::kShuffled, .augmentation = Augmentation::kCropAndFlip});
  std::vector<NamedLayer> layers = make_model(GetParam(), {});
  const Shape input{kBatch, 28, 28, 1};
  const Cuts cuts = balanced_cuts(layer_costs(layers, input), kStages);
  EngineConfig config;
  config.optimizer.rule = "adamw";
  Engine engine(config, split_layers(std::move(layers), cuts), std::make_unique<SoftmaxCrossEntropy>(),
                input);
  app::LoaderSource source(loader);
  loader.start_epoch(0);
  std::int64_t before = 0, after = 0;
  TrainPass pass;
  pass.minibatches = kMinibatches;
  pass.learning_rate = [](std::int64_t) { return 1e-3F; };
  pass.on_step = [&](const StepResult& step) {
    if (step.step == kWarm) before = allocations.load();
    after = allocations.load();
    return true;
  };
  engine.train(source, pass);
  EXPECT_GT(before, 0);
  EXPECT_EQ(after - before, 0) << "in " << kMinibatches - kWarm << " mini-batches";
}

INSTANTIATE_TEST_SUITE_P(Models, Allocation, testing::Values("mlp", "cnn", "resnet20"),
                         [](const testing::TestParamInfo<const char*>& model) {
                           return std::string(model.param);
                         });

}  // namespace
}  // namespace pipeoptim::test
