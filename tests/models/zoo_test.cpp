#include "models/zoo.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <stdexcept>

#include "models/partition.h"
#include "models/safetensors.h"
#include "tests/models/files.h"

namespace pipeoptim::test {
namespace {

struct Tensors {
  std::map<std::string, Shape> all;  // parameters and states by global name
  std::int64_t parameters = 0;
  Shape output;
  double forward_flops = 0;
};

Tensors describe(const std::string& name, const ModelOptions& options, std::int64_t batch = 2) {
  Tensors out;
  Shape shape = model_input(name, options, batch);
  for (const NamedLayer& named : make_model(name, options)) {
    const LayerPlan plan = named.layer->plan(Device::host(), 1, shape);
    shape = plan.output;
    out.forward_flops += plan.forward_flops / static_cast<double>(batch);
    for (const Parameter& parameter : named.layer->parameters()) {
      EXPECT_TRUE(out.all.emplace(named.name + "." + parameter.name, parameter.shape).second)
          << parameter.name;
      out.parameters += parameter.shape.elements();
    }
    for (const State& state : named.layer->states()) {
      EXPECT_TRUE(out.all.emplace(named.name + "." + state.name, state.shape).second) << state.name;
    }
  }
  out.output = shape;
  return out;
}

// The names and shapes of the golden files are PyTorch's own.
TEST(Zoo, HasPyTorchsNamesAndShapes) {
  const std::map<std::string, ModelOptions> cases = {
      {"mlp", {.hidden = {32, 24}}},
      {"cnn", {.width = 4}},
      {"gpt", {.layers = 2, .features = 16, .heads = 2, .sequence_length = 12, .vocabulary = 11}},
      {"lstm", {.classes = 3, .layers = 2, .features = 12, .vocabulary = 11}}};
  for (const auto& [name, options] : cases) {
    const Tensors model = describe(name, options);
    std::map<std::string, Shape> golden;
    for (const StoredTensor& tensor :
         read_safetensors(std::string(PIPEOPTIM_SOURCE_DIR "/tests/golden/") + name + ".safetensors")) {
      golden.emplace(tensor.name, tensor.shape);
    }
    EXPECT_EQ(model.all.size(), golden.size());
    for (const auto& [tensor, shape] : golden) {
      ASSERT_TRUE(model.all.contains(tensor)) << tensor;
      EXPECT_EQ(model.all.at(tensor), shape) << tensor;
    }
  }
}

TEST(Zoo, CnnIsSmall) {
  const Tensors model = describe("cnn", {});
  EXPECT_EQ(model.output, (Shape{2, 10}));
  EXPECT_EQ(model.parameters,
            160 - 16 + 32 + 4608 + 64 + 9216 + 64 + 18432 + 128 + 36864 + 128 + 401536 + 1290);
  EXPECT_GT(model.forward_flops, 9e6);
  EXPECT_LT(model.forward_flops, 13e6);
  EXPECT_EQ(describe("cnn", {.image = {32, 32, 3}}).output, (Shape{2, 10}));
}

TEST(Zoo, Resnet20) {
  const Tensors model = describe("resnet20", {.image = {32, 32, 3}});
  EXPECT_EQ(model.output, (Shape{2, 10}));
  // 0.27 million as in the paper (269722 with identity shortcuts), and two projections with batch norm
  EXPECT_EQ(model.parameters, 269722 + (16 * 32 + 64) + (32 * 64 + 128));
  for (const char* name :
       {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer1.2.bn2.bias",
        "layer2.0.downsample.0.weight", "layer3.0.downsample.1.running_mean", "fc.weight"}) {
    EXPECT_TRUE(model.all.contains(name)) << name;
  }
  EXPECT_FALSE(model.all.contains("layer1.0.downsample.0.weight"));
  EXPECT_EQ(describe("resnet20", {}).output, (Shape{2, 10}));
}

TEST(Zoo, Vgg16) {
  const Tensors model = describe("vgg16", {.image = {32, 32, 3}});
  EXPECT_EQ(model.output, (Shape{2, 10}));
  // torchvision's vgg16_bn has 14723136 in its features
  EXPECT_EQ(model.parameters, 14723136 + 5130);
  for (const char* name : {"features.0.bias", "features.1.running_var", "features.40.weight",
                           "features.41.weight", "classifier.bias"}) {
    EXPECT_TRUE(model.all.contains(name)) << name;
  }
  EXPECT_EQ(describe("vgg16", {}).output, (Shape{2, 10}));
}

TEST(Zoo, Gpt) {
  const Tensors model = describe("gpt", {});
  EXPECT_EQ(model.output, (Shape{2, 128, 65}));
  // A block: two norms, 4 f^2 + 4 f in attention, 8 f^2 + 5 f in the MLP
  constexpr std::int64_t f = 256;
  EXPECT_EQ(model.parameters, (65 + 128 + 65) * f + 2 * f + 4 * (12 * f * f + 13 * f));
  EXPECT_EQ(model.all.at("transformer.wpe.weight"), (Shape{128, f}));
  EXPECT_EQ(model.all.at("transformer.h.3.attn.c_attn.weight"), (Shape{3 * f, f}));
  EXPECT_EQ(model.all.at("transformer.h.0.mlp.c_fc.weight"), (Shape{4 * f, f}));
  EXPECT_EQ(model.all.at("lm_head.weight"), (Shape{65, f}));
  EXPECT_FALSE(model.all.contains("lm_head.bias"));
  for (const NamedLayer& named : make_model("gpt", {})) {
    for (const Parameter& parameter : named.layer->parameters()) {
      const float deviation = parameter.name.ends_with("c_proj.weight") ? 0.02F / std::sqrt(8.0F) : 0.02F;
      if (parameter.initializer.kind == Initializer::Kind::kNormal) {
        EXPECT_EQ(parameter.initializer.value, deviation) << named.name << '.' << parameter.name;
      }
    }
  }
  // Both backwards and the forward: 6 operations a weight and position, and attention's products.
  EXPECT_NEAR(model.forward_flops, 2.0 * 128 * (4 * 12 * f * f + 65 * f + 4 * f * 128), 1e5);
}

TEST(Zoo, Lstm) {
  const Tensors model =
      describe("lstm", {.classes = 2, .layers = 2, .features = 24, .sequence_length = 5, .vocabulary = 30});
  EXPECT_EQ(model.output, (Shape{2, 2}));
  EXPECT_EQ(model.parameters, 30 * 24 + 2 * (8 * 24 * 24 + 8 * 24) + 2 * 24 + 2);
  for (const char* name : {"embedding.weight", "lstm.0.weight_ih_l0", "lstm.1.bias_hh_l0", "fc.bias"}) {
    EXPECT_TRUE(model.all.contains(name)) << name;
  }
}

TEST(Zoo, DropoutKeepsNames) {
  const Tensors with = describe("mlp", {.dropout = 0.5}), without = describe("mlp", {});
  EXPECT_EQ(with.all, without.all);
  for (const char* text : {"gpt", "lstm"}) {
    EXPECT_EQ(describe(text, {.dropout = 0.5}).all, describe(text, {}).all);
  }
  EXPECT_EQ(make_model("mlp", {.dropout = 0.5}).size(), make_model("mlp", {}).size() + 3);
}

TEST(Zoo, RejectsUnknownAndImpossible) {
  expect_mentions(message_of<std::invalid_argument>([] { make_model("resnet2", {}); }),
                  {"resnet2", "did you mean 'resnet20'"});
  EXPECT_THROW(make_model("mlp", {.hidden = {16, 0}}), std::invalid_argument);
  EXPECT_THROW(make_model("cnn", {.width = 0}), std::invalid_argument);
  EXPECT_THROW(make_model("resnet20", {.width = 0}), std::invalid_argument);
  EXPECT_THROW(make_model("cnn", {.image = {2, 2, 1}}), std::invalid_argument);
  EXPECT_THROW(make_model("mlp", {.image = {28, 28}}), std::invalid_argument);
  EXPECT_THROW(make_model("mlp", {.classes = 0}), std::invalid_argument);
  EXPECT_THROW(make_model("gpt", {.features = 20, .heads = 8}), std::invalid_argument);
  expect_mentions(message_of<std::invalid_argument>([] { make_model("gpt", {.layers = 0}); }),
                  {"gpt", "layers", "got 0"});
  expect_mentions(message_of<std::invalid_argument>([] { make_model("lstm", {.vocabulary = -1}); }),
                  {"lstm", "vocabulary", "got -1"});
  EXPECT_THROW(make_model("lstm", {.sequence_length = 0}), std::invalid_argument);
}

TEST(Partition, DividesModels) {
  for (const std::string& name : model_names()) {
    const std::vector<NamedLayer> layers = make_model(name, {});
    const std::vector<double> costs = layer_costs(layers, model_input(name, {}, 8));
    for (const double cost : costs) EXPECT_GE(cost, 0);
    for (const int stages : {1, 2, 4}) {
      const auto parts = split_layers(make_model(name, {}), balanced_cuts(costs, stages));
      ASSERT_EQ(static_cast<int>(parts.size()), stages);
      std::size_t at = 0;
      for (const auto& part : parts) {
        for (const NamedLayer& layer : part) EXPECT_EQ(layer.name, layers[at++].name);
      }
      EXPECT_EQ(at, layers.size());
    }
  }
}

}  // namespace
}  // namespace pipeoptim::test
