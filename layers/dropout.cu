#include <stdexcept>

#include "kernels/random.h"
#include "kernels/runtime/launch.h"
#include "layers/dropout.h"

namespace pipeoptim {
namespace {

// Elements 4 i to 4 i + 3 by the four words of block i; the last block may have fewer.
struct MaskBlock {
  const float* from;
  float* to;
  RandomKey random;
  std::uint32_t threshold;
  float gain;
  std::int64_t first_block;
  int width;

  PO_HD void operator()(std::int64_t i) const {
    const std::int64_t block = first_block + i;
    const RandomBlock bits =
        random_block(random.seed, random.minibatch, random.layer, static_cast<std::uint64_t>(block));
    for (int word = 0; word < width; ++word) {
      const std::int64_t at = 4 * block + word;
      to[at] = bits.words[word] < threshold ? 0.0F : from[at] * gain;
    }
  }
};

// A body for whole blocks apart, because its constant width is what the host's compiler makes vectors of.
template <bool kPacks>
struct MaskWholeBlock {
  MaskBlock mask;
  PO_HD void operator()(std::int64_t i) const {
    const float* from = mask.from + 4 * i;
    float* to = mask.to + 4 * i;
    const RandomBlock bits = random_block(mask.random.seed, mask.random.minibatch, mask.random.layer,
                                          static_cast<std::uint64_t>(i));
    const Pack<4> in = kPacks ? load_pack<4>(from) : Pack<4>{{from[0], from[1], from[2], from[3]}};
    const Pack<4> out = {{bits.words[0] < mask.threshold ? 0.0F : in.value[0] * mask.gain,
                          bits.words[1] < mask.threshold ? 0.0F : in.value[1] * mask.gain,
                          bits.words[2] < mask.threshold ? 0.0F : in.value[2] * mask.gain,
                          bits.words[3] < mask.threshold ? 0.0F : in.value[3] * mask.gain}};
    if constexpr (kPacks) {
      store_pack(to, out);
    } else {
      for (int word = 0; word < 4; ++word) to[word] = out.value[word];
    }
  }
};

void run_mask(Stream& stream, std::int64_t elements, MaskBlock mask) {
  if (stream.device().backend == Backend::kCuda && allow_packs(mask.from, mask.to)) {
    for_each(stream, elements / 4, MaskWholeBlock<true>{mask});
  } else {
    for_each(stream, elements / 4, MaskWholeBlock<false>{mask});
  }
  mask.first_block = elements / 4;
  mask.width = static_cast<int>(elements % 4);
  if (mask.width > 0) for_each(stream, 1, mask);
}

}  // namespace

Dropout::Dropout(double probability) : probability_(probability) {
  if (!(probability >= 0 && probability < 1)) {
    throw std::invalid_argument("dropout: the probability must be in [0, 1), got " +
                                std::to_string(probability));
  }
  threshold_ = static_cast<std::uint32_t>(probability * 4294967296.0);
  gain_ = static_cast<float>(1 / (1 - probability));
}

std::string Dropout::describe() const { return "dropout " + std::to_string(probability_).substr(0, 4); }

LayerPlan Dropout::plan(Device, int, const Shape& input) {
  LayerPlan plan;
  plan.output = input;
  plan.needs = Needs::kNothing;
  plan.in_place = true;
  plan.random = true;
  plan.bytes = 4.0 * sizeof(float) * static_cast<double>(input.elements());
  return plan;
}

void Dropout::forward(const ForwardContext& context) const {
  if (context.mode == Mode::kTraining) {
    run_mask(context.stream, context.input.elements(),
             {context.input.data, context.output.data, context.random, threshold_, gain_, 0, 4});
  } else if (context.input.data != context.output.data) {
    context.stream.copy(context.output.data, context.input.data,
                        static_cast<std::size_t>(context.input.elements()) * sizeof(float));
  }
}

void Dropout::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.data) return;
  run_mask(
      context.stream, context.output_gradient.elements(),
      {context.output_gradient.data, context.input_gradient.data, context.random, threshold_, gain_, 0, 4});
}

}  // namespace pipeoptim
