#include "models/zoo.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/names.h"
#include "layers/activation.h"
#include "layers/attention.h"
#include "layers/batch_norm.h"
#include "layers/conv2d.h"
#include "layers/dropout.h"
#include "layers/embedding.h"
#include "layers/flatten.h"
#include "layers/last_step.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/lstm.h"
#include "layers/pooling.h"
#include "layers/residual.h"

namespace pipeoptim {

namespace {

using Layers = std::vector<NamedLayer>;

template <typename L, typename... Arguments>
void add(Layers& layers, std::string name, Arguments&&... arguments) {
  layers.push_back({std::move(name), std::make_unique<L>(std::forward<Arguments>(arguments)...)});
}

void add_dropout(Layers& layers, std::string name, double probability) {
  if (probability != 0) add<Dropout>(layers, std::move(name), probability);
}

Conv2dOptions conv3x3(std::int64_t in, std::int64_t out, std::int64_t stride = 1) {
  return {.in = in, .out = out, .kernel = 3, .stride = stride, .padding = 1, .bias = Bias::kNo};
}

constexpr BatchNormOptions kWithRelu{.activation = Activation::kRelu};

Layers make_mlp(const ModelOptions& options) {
  Layers layers;
  add<Flatten>(layers, "flatten");
  std::int64_t in = options.image.elements();
  int index = 0;  // of nn.Sequential
  for (const std::int64_t out : options.hidden) {
    if (out < 1) throw std::invalid_argument("a hidden layer of " + std::to_string(out) + " units");
    add<Linear>(layers, std::to_string(index), in, out);
    add<ReLU>(layers, std::to_string(index + 1));
    add_dropout(layers, std::to_string(index + 1) + ".dropout", options.dropout);
    in = out;
    index += 2;
  }
  add<Linear>(layers, std::to_string(index), in, options.classes);
  return layers;
}

Layers make_cnn(const ModelOptions& options) {
  const std::int64_t height = (options.image[0] + 1) / 2 / 2, width = (options.image[1] + 1) / 2 / 2;
  const std::int64_t w = options.width;
  if (w < 1) throw std::invalid_argument("cnn needs a width of at least 1");
  if (height < 1 || width < 1) {
    throw std::invalid_argument("images of " + options.image.to_string() + " are too small for cnn");
  }
  Layers layers;
  add<Conv2d>(layers, "conv1", conv3x3(options.image[2], w));
  add<BatchNorm2d>(layers, "bn1", w, kWithRelu);
  add<Conv2d>(layers, "conv2", conv3x3(w, 2 * w, 2));
  add<BatchNorm2d>(layers, "bn2", 2 * w, kWithRelu);
  add<Conv2d>(layers, "conv3", conv3x3(2 * w, 2 * w));
  add<BatchNorm2d>(layers, "bn3", 2 * w, kWithRelu);
  add<MaxPool2d>(layers, "pool");
  add<Conv2d>(layers, "conv4", conv3x3(2 * w, 4 * w));
  add<BatchNorm2d>(layers, "bn4", 4 * w, kWithRelu);
  add<Conv2d>(layers, "conv5", conv3x3(4 * w, 4 * w));
  add<BatchNorm2d>(layers, "bn5", 4 * w, kWithRelu);
  add<Flatten>(layers, "flatten");
  add<Linear>(layers, "fc1", 4 * w * height * width, 8 * w);
  add<ReLU>(layers, "relu");
  add_dropout(layers, "dropout", options.dropout);
  add<Linear>(layers, "fc2", 8 * w, options.classes);
  return layers;
}

LayerPtr basic_block(std::int64_t in, std::int64_t out, std::int64_t stride) {
  Layers body;
  add<Conv2d>(body, "conv1", conv3x3(in, out, stride));
  add<BatchNorm2d>(body, "bn1", out, kWithRelu);
  add<Conv2d>(body, "conv2", conv3x3(out, out));
  add<BatchNorm2d>(body, "bn2", out);
  Layers shortcut;
  if (stride != 1 || in != out) {
    add<Conv2d>(shortcut, "downsample.0",
                Conv2dOptions{.in = in, .out = out, .kernel = 1, .stride = stride, .bias = Bias::kNo});
    add<BatchNorm2d>(shortcut, "downsample.1", out);
  }
  return std::make_unique<Residual>(std::move(body), std::move(shortcut));
}

Layers make_resnet20(const ModelOptions& options) {
  constexpr int kBlocks = 3;  // a group
  Layers layers;
  if (options.width < 1) throw std::invalid_argument("resnet20 needs a width of at least 1");
  std::int64_t in = options.width;
  add<Conv2d>(layers, "conv1", conv3x3(options.image[2], in));
  add<BatchNorm2d>(layers, "bn1", in, kWithRelu);
  for (int group = 1; group <= 3; ++group) {
    const std::int64_t out = options.width << (group - 1);
    for (int block = 0; block < kBlocks; ++block) {
      const std::int64_t stride = group > 1 && block == 0 ? 2 : 1;
      layers.push_back(
          {"layer" + std::to_string(group) + "." + std::to_string(block), basic_block(in, out, stride)});
      in = out;
    }
  }
  add<GlobalAvgPool>(layers, "avgpool");
  add<Linear>(layers, "fc", in, options.classes);
  return layers;
}

Layers make_vgg16(const ModelOptions& options) {
  constexpr int kPool = 0;
  constexpr std::array kConfiguration{64,    64,  kPool, 128, 128,   kPool, 256, 256, 256,
                                      kPool, 512, 512,   512, kPool, 512,   512, 512, kPool};
  Layers layers;
  std::int64_t in = options.image[2], side = std::min(options.image[0], options.image[1]);
  int index = 0;  // torchvision counts convolution, batch norm, ReLU and pooling
  const auto name = [&] { return "features." + std::to_string(index++); };
  for (const std::int64_t out : kConfiguration) {
    if (out == kPool) {
      // 28x28 images are down to one pixel before the last pooling.
      if (side >= 2)
        add<MaxPool2d>(layers, name());
      else
        ++index;
      side /= 2;
      continue;
    }
    Conv2dOptions convolution = conv3x3(in, out);
    convolution.bias = Bias::kYes;
    add<Conv2d>(layers, name(), convolution);
    add<BatchNorm2d>(layers, name(), out, kWithRelu);
    ++index;
    in = out;
  }
  add<GlobalAvgPool>(layers, "avgpool");
  add_dropout(layers, "dropout", options.dropout);
  add<Linear>(layers, "classifier", in, options.classes);
  return layers;
}

// First values as GPT-2's: what is added to the residual stream is smaller the more often that is done.
Layers make_gpt(const ModelOptions& options) {
  constexpr float kDeviation = 0.02F;
  const std::int64_t f = options.features;
  const float added = kDeviation / std::sqrt(2.0F * static_cast<float>(options.layers));
  Layers layers;
  add<Embedding>(layers, "transformer.wte", EmbeddingOptions{options.vocabulary, f, kDeviation});
  add<PositionEmbedding>(layers, "transformer.wpe",
                         PositionEmbeddingOptions{options.sequence_length, f, kDeviation});
  add_dropout(layers, "transformer.drop", options.dropout);
  for (std::int64_t i = 0; i < options.layers; ++i) {
    Layers attention, mlp;
    add<LayerNorm>(attention, "ln_1", f);
    add<CausalSelfAttention>(attention, "attn", AttentionOptions{f, options.heads, kDeviation, added});
    add_dropout(attention, "attn.resid_dropout", options.dropout);
    add<LayerNorm>(mlp, "ln_2", f);
    add<Linear>(mlp, "mlp.c_fc", f, 4 * f, LinearOptions{.init = LinearInit::normal(kDeviation)});
    add<GELU>(mlp, "mlp.gelu");
    add<Linear>(mlp, "mlp.c_proj", 4 * f, f, LinearOptions{.init = LinearInit::normal(added)});
    add_dropout(mlp, "mlp.dropout", options.dropout);
    for (Layers* body : {&attention, &mlp}) {
      add<Residual>(layers, "transformer.h." + std::to_string(i), std::move(*body), Layers{},
                    FinalActivation::kNone);
    }
  }
  add<LayerNorm>(layers, "transformer.ln_f", f);
  add<Linear>(layers, "lm_head", f, options.vocabulary,
              LinearOptions{.bias = Bias::kNo, .init = LinearInit::normal(kDeviation)});
  return layers;
}

Layers make_lstm(const ModelOptions& options) {
  Layers layers;
  add<Embedding>(layers, "embedding",
                 EmbeddingOptions{.vocabulary = options.vocabulary, .features = options.features});
  for (std::int64_t i = 0; i < options.layers; ++i) {
    add<Lstm>(layers, "lstm." + std::to_string(i), options.features, options.features);
  }
  add<LastStep>(layers, "last");
  add_dropout(layers, "dropout", options.dropout);
  add<Linear>(layers, "fc", options.features, options.classes);
  return layers;
}

void check_image_model(const ModelOptions& options) {
  if (options.image.rank() != 3 || options.image.elements() < 1) {
    throw std::invalid_argument("a model needs images of height x width x channels, not " +
                                options.image.to_string());
  }
}

void check_text_model(const std::string& name, const ModelOptions& options) {
  const auto require = [&](const char* what, std::int64_t value) {
    if (value >= 1) return;
    throw std::invalid_argument(name + " needs at least 1 of " + what + ", got " + std::to_string(value));
  };
  require("layers", options.layers);
  require("features", options.features);
  require("tokens in a sequence", options.sequence_length);
  require("tokens in its vocabulary", options.vocabulary);
}

const std::array<std::string, 6> kNames{"mlp", "cnn", "resnet20", "vgg16", "gpt", "lstm"};

}  // namespace

std::span<const std::string> model_names() { return kNames; }

DataKind model_data(const std::string& name) {
  if (name == "gpt") return DataKind::kRunningText;
  return name == "lstm" ? DataKind::kTexts : DataKind::kImages;
}

Shape model_input(const std::string& name, const ModelOptions& options, std::int64_t batch) {
  if (model_data(name) != DataKind::kImages) return {batch, options.sequence_length};
  return {batch, options.image[0], options.image[1], options.image[2]};
}

std::vector<NamedLayer> make_model(const std::string& name, const ModelOptions& options) {
  if (model_data(name) == DataKind::kImages) {
    check_image_model(options);
  } else {
    check_text_model(name, options);
  }
  if (options.classes < 1) throw std::invalid_argument("a model needs at least one class");
  if (name == "mlp") return make_mlp(options);
  if (name == "cnn") return make_cnn(options);
  if (name == "resnet20") return make_resnet20(options);
  if (name == "vgg16") return make_vgg16(options);
  if (name == "gpt") return make_gpt(options);
  if (name == "lstm") return make_lstm(options);
  throw std::invalid_argument(unknown_name("model", name, kNames));
}

}  // namespace pipeoptim
