// The models that the program knows by name, with PyTorch's tensor names.
//
//   mlp       nn.Sequential(Linear, ReLU, ..., Linear) on the image as {C H W} values: "0.weight", "0.bias",
//             "2.weight", and so on
//   cnn       five 3x3 convolutions with batch norm, two linears. `width` w gives channels w, 2w, 2w, 4w, 4w
//             and 8w hidden units: conv1 bn1, conv2 (stride 2) bn2, conv3 bn3, 2x2 max pooling, conv4 bn4,
//             conv5 bn5, fc1, fc2; about 11 million operations forward for a 28x28 image at w = 16. Its work
//             divides evenly over two and over four stages
//   resnet20  He et al., arXiv 1512.03385, section 4.2, with torchvision's names: conv1, bn1, layer1.0.conv1,
//             and so on, layer2.0.downsample.0 (1x1 convolution) and .1 (its batch norm), fc; channels w,
//             2w and 4w, the paper's at w = 16
//   vgg16     Simonyan and Zisserman, arXiv 1409.1556, configuration D with batch norm, in the form usual
//             for CIFAR: torchvision's features.0 to features.43 (convolutions with bias), then one linear
//             "classifier" on the mean over what is left of the image (1x1 of 512 channels for 32x32 pixels)
//
// and on texts, given as one token a position:
//
//   gpt       a decoder in nanoGPT's form and names: transformer.wte, transformer.wpe, `layers` blocks
//             transformer.h.0 and so on of ln_1, attn.c_attn, attn.c_proj, ln_2, mlp.c_fc, mlp.c_proj, then
//             transformer.ln_f and lm_head. The GELU is exact. lm_head has weights of its own, where GPT-2
//             shares wte's: the two lie in different stages. Each block is two residual layers
//   lstm      a classifier of texts: embedding, `layers` LSTMs lstm.0 and so on (each as nn.LSTM of one
//   layer),
//             and the linear fc on the last position
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/layer.h"
#include "models/data_kind.h"

namespace pipeoptim {

struct ModelOptions {
  Shape image{28, 28, 1};  // height, width, channels
  std::int64_t classes = 10;
  std::vector<std::int64_t> hidden{256, 128, 64};  // mlp: units of the hidden layers; empty: a linear model
  std::int64_t width = 16;                         // cnn, resnet20
  // mlp: behind every ReLU; cnn, vgg16 and lstm: in front of the last linear; gpt: behind the embeddings, and
  // at the end of what is added to a residual stream (not on the probabilities of attention)
  double dropout = 0;

  // gpt, lstm
  std::int64_t layers = 4;
  std::int64_t features = 256;  // of a position: of embeddings, blocks and LSTMs
  std::int64_t heads = 8;       // gpt
  std::int64_t sequence_length = 128;
  std::int64_t vocabulary = 65;  // tokens; gpt's classes
};

std::span<const std::string> model_names();
// Of a known model.
DataKind model_data(const std::string& name);
// The shape of its mini-batches: {batch, height, width, channels} or {batch, sequence_length}.
Shape model_input(const std::string& name, const ModelOptions& options, std::int64_t batch);

// The flat list of layers; a pipeline may be cut between any two. Throws std::invalid_argument for an unknown
// name (with the nearest), and for numbers that make no model.
std::vector<NamedLayer> make_model(const std::string& name, const ModelOptions& options);

}  // namespace pipeoptim
