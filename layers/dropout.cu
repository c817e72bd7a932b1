#include <stdexcept>

#include "kernels/random.h"
#include "kernels/runtime/launch.h"
#include "layers/dropout.h"
#include "layers/typed.h"

namespace pipeoptim {
namespace {

// What all elements have alike. Element e goes by word e % 4 of the random block e / 4.
template <typename T>
struct Mask {
  const T* from;
  T* to;
  std::int64_t elements;
  RandomKey random;
  std::uint32_t threshold;
  float gain;

  PO_HD RandomBlock bits(std::int64_t block) const {
    return random_block(random.seed, random.minibatch, random.layer, static_cast<std::uint64_t>(block));
  }
  template <int kWidth>
  PO_HD void apply(std::int64_t first, const std::uint32_t* words) const {
    Pack<kWidth> values = load_floats<kWidth>(from + first);
    for (int v = 0; v < kWidth; ++v) {
      const float kept = values.value[v] * gain;
      values.value[v] = words[v] < threshold ? 0.0F : kept;
    }
    store_floats(to + first, values);
  }
};

// Blocks from `first` on, one by one; the last one may be cut.
template <typename T>
struct MaskSingly {
  Mask<T> mask;
  std::int64_t first;
  PO_HD void operator()(std::int64_t i) const {
    const std::int64_t block = first + i, left = mask.elements - 4 * block;
    const RandomBlock bits = mask.bits(block);
    for (int word = 0; word < 4; ++word) {
      if (word < left) mask.template apply<1>(4 * block + word, bits.words + word);
    }
  }
};

// Whole blocks, in one access each.
template <typename T>
struct MaskPacked {
  Mask<T> mask;
  PO_HD void operator()(std::int64_t block) const {
    mask.template apply<4>(4 * block, mask.bits(block).words);
  }
};

// The host's: blocks in rows, first all words, then all elements, which are two loops of vector code.
template <typename T>
struct MaskRow {
  static constexpr std::int64_t kBlocks = 16;
  Mask<T> mask;

  template <typename Team>
  PO_HD void operator()(std::int64_t row, const Team&) const {
    std::uint32_t words[4 * kBlocks];
    PO_SIMD
    for (std::int64_t i = 0; i < kBlocks; ++i) {
      const RandomBlock bits = mask.bits(row * kBlocks + i);
      std::uint32_t* const to = words + 4 * i;
      to[0] = bits.words[0], to[1] = bits.words[1], to[2] = bits.words[2], to[3] = bits.words[3];
    }
    PO_SIMD
    for (std::int64_t e = 0; e < 4 * kBlocks; ++e) {
      mask.template apply<1>(row * 4 * kBlocks + e, words + e);
    }
  }
};

template <typename T>
void run_mask(Stream& stream, const Mask<T>& mask) {
  const std::int64_t whole = mask.elements / 4;
  std::int64_t done = 0;  // blocks
  if (stream.device().backend == Backend::kHost) {
    const std::int64_t rows = whole / MaskRow<T>::kBlocks;
    if (rows > 0) host::for_each_row(stream, rows, MaskRow<T>{mask});
    done = rows * MaskRow<T>::kBlocks;
  } else if (allow_packs(mask.from, mask.to)) {
    for_each(stream, whole, MaskPacked<T>{mask});
    done = whole;
  }
  for_each(stream, (mask.elements + 3) / 4 - done, MaskSingly<T>{mask, done});
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
      run_mask<T>(context.stream, {x, y, context.input.elements(), context.random, threshold_, gain_});
    } else if (x != y) {
      context.stream.copy(y, x, context.output.bytes());
    }
  });
}

void Dropout::backward_input(const BackwardContext& context) const {
  if (!context.input_gradient.there()) return;
  with_type_of(context.output_gradient, [&]<typename T>() {
    run_mask<T>(context.stream, {values_of<T>(context.output_gradient), values_of<T>(context.input_gradient),
                                 context.output_gradient.elements(), context.random, threshold_, gain_});
  });
}

}  // namespace pipeoptim
