#include <stdexcept>

#include "kernels/random.h"
#include "kernels/runtime/launch.h"
#include "layers/dropout.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

// Elements 4 i to 4 i + 3 by the four words of block i; the last block may have fewer.
template <typename T>
struct MaskBlock {
  const T* from;
  T* to;
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
      Pack<1> value = load_floats<1>(from + at);
      value.value[0] = bits.words[word] < threshold ? 0.0F : value.value[0] * gain;
      store_floats(to + at, value);
    }
  }
};

// A body for whole blocks apart, because its constant width is what the host's compiler makes vectors of.
template <typename T, bool kPacks>
struct MaskWholeBlock {
  MaskBlock<T> mask;
  PO_HD void operator()(std::int64_t i) const {
    const T* from = mask.from + 4 * i;
    T* to = mask.to + 4 * i;
    const RandomBlock bits = random_block(mask.random.seed, mask.random.minibatch, mask.random.layer,
                                          static_cast<std::uint64_t>(i));
    constexpr int kStep = kPacks ? 4 : 1;
    for (int first = 0; first < 4; first += kStep) {
      Pack<kStep> values = load_floats<kStep>(from + first);
      for (int v = 0; v < kStep; ++v) {
        values.value[v] = bits.words[first + v] < mask.threshold ? 0.0F : values.value[v] * mask.gain;
      }
      store_floats(to + first, values);
    }
  }
};

template <typename T>
void run_mask(Stream& stream, std::int64_t elements, MaskBlock<T> mask) {
  if (stream.device().backend == Backend::kCuda && allow_packs(mask.from, mask.to)) {
    for_each(stream, elements / 4, MaskWholeBlock<T, true>{mask});
  } else {
    for_each(stream, elements / 4, MaskWholeBlock<T, false>{mask});
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
  with_type_of(context.input, [&]<typename T>() {
    const T* const x = values_of<T>(context.input);
    T* const y = values_of<T>(context.output);
    if (context.mode == Mode::kTraining) {
      run_mask<T>(context.stream, context.input.elements(), {x, y, context.random, threshold_, gain_, 0, 4});
    } else if (x != y) {
      context.stream.copy(y, x, context.output.bytes());
    }
  });
}

void Dropout::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there()) return;
  with_type_of(context.output_gradient, [&]<typename T>() {
    run_mask<T>(context.stream, context.output_gradient.elements(),
                {values_of<T>(context.output_gradient), values_of<T>(context.input_gradient), context.random,
                 threshold_, gain_, 0, 4});
  });
}

}  // namespace pipeoptim
