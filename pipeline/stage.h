// One stage: a planned chain of layers, its arenas (one buffer per role), its optimizer, and the passes on
// one stream.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/stream.h"
#include "layers/sequence.h"
#include "optim/optimizer.h"
#include "pipeline/engine.h"
#include "pipeline/schedule.h"

namespace pipeoptim {

// A model tensor's place in a stage's arenas; `storage` says how it lies there.
struct PlacedTensor {
  ModelTensor tensor;
  std::int64_t offset = 0;  // elements, in the parameter arena or the state buffer
  Storage storage = Storage::kRowMajor;
};

struct StageOptions {
  Device device;
  int threads = 1;
  int index = 0;
  OptimizerConfig optimizer;
  BackwardSplit split = BackwardSplit::kJoined;
  MatrixPrecision precision = MatrixPrecision::kFp32;
  RowKernels row_kernels = RowKernels::kOwn;
  Shape input;              // of one micro-batch
  ElementTypes types = {};  // of what comes in and goes out, and of their gradients
  int slots = 1;            // micro-batches in flight
  int version_slots = 0;    // extra full weight copies
  int predicted_slots = 0;  // predicted copies
  std::uint64_t seed = 0;
  std::uint64_t first_random_layer = 0;
};

class Stage {
 public:
  // Plans, allocates nothing on the device.
  Stage(StageOptions options, std::vector<NamedLayer> layers);

  // Allocates and fills with the initial values 0; idempotent.
  void allocate();

  Device device() const { return options_.device; }
  const Shape& output_shape() const { return plan_.output; }
  std::int64_t parameter_elements() const { return parameter_elements_; }  // of the arena, padding included
  const std::vector<PlacedTensor>& parameters() const { return parameters_; }
  const std::vector<PlacedTensor>& states() const { return states_; }
  const Sequence& layers() const { return *layers_; }
  int random_layers() const { return layers_->random_layers(); }
  // Whether passes with the same slot and weights enqueue the same work.
  bool repeats() const { return !plan_.random; }
  StageMemory memory() const;

  // Buffers of one activation slot.
  Tensor input(int slot) const { return tensor(slot, input_offset_, options_.types.input, options_.input); }
  Tensor output(int slot) const { return tensor(slot, output_offset_, options_.types.output, plan_.output); }
  Tensor input_gradient(int slot) const {
    return tensor(slot, input_gradient_offset_, options_.types.input, options_.input);
  }
  Tensor output_gradient(int slot) const {
    return tensor(slot, output_gradient_offset_, options_.types.output, plan_.output);
  }

  float* weights() const { return weights_.data(); }
  float* state_values() const { return state_values_.data(); }
  Optimizer* optimizer() const { return optimizer_.get(); }  // null for a stage without parameters

  struct Pass {
    int slot = 0;
    WeightSource source = WeightSource::kLive;
    int version_slot = -1;
    int predicted_slot = -1;
    std::uint64_t microbatch = 0;  // counted from the start of training: keys the random numbers
    Mode mode = Mode::kTraining;
    GradientMode gradients = GradientMode::kStore;
    bool wants_input_gradient = true;
  };
  enum class Part { kBoth, kInput, kWeights };
  void forward(Stream& stream, const Pass& pass) const;
  void backward(Stream& stream, const Pass& pass, Part part) const;

  void update(Stream& stream, float lr);
  void predict(Stream& stream, int predicted_slot, Lookahead ahead);
  void update_predict(Stream& stream, float lr, int predicted_slot, Lookahead ahead);
  void stash_weights(Stream& stream, int version_slot);

  // Updates and predictions as work that can be repeated: step_rates() makes the numbers of one time, and
  // what repeat() enqueues reads them in the device's memory.
  StepRates step_rates(float lr, Lookahead ahead) const;
  struct Step {
    Op op = Op::kUpdate;  // kPredict, kUpdatePredict
    int predicted_slot = -1;
    int distance = 0;
    const StepRates* rates = nullptr;
  };
  void repeat(Stream& stream, const Step& step);

 private:
  std::byte* slot_memory(int slot, std::size_t offset) const {
    return slots_.data() + static_cast<std::size_t>(slot) * slot_bytes_ + offset;
  }
  Tensor tensor(int slot, std::size_t offset, ElementType type, const Shape& shape) const {
    return Tensor::at(slot_memory(slot, offset), type, shape);
  }
  // The parameters' values in one copy of the weights. `rounded` is empty, or has those that are bf16; they
  // are null in `values`.
  struct Pointers {
    std::vector<const float*> values;
    std::vector<const Bf16*> rounded = {};
  };
  // A copy of predicted weights: the arena's first elements in bf16, then the others in fp32.
  struct PredictedCopy {
    Memory memory;
    Pointers pointers;
  };

  void place_tensors();
  std::size_t predicted_bytes() const;
  PredictedWeights predicted(int slot) const;
  const Pointers& pointers(const Pass& pass) const;
  Pointers pointers_into(const float* copy) const;
  Pointers pointers_into(const PredictedWeights& copy) const;
  OptimizerArena optimizer_arena() const;

  StageOptions options_;
  std::unique_ptr<Sequence> layers_;
  LayerPlan plan_;
  std::vector<PlacedTensor> parameters_;  // in the order of the layers
  std::vector<PlacedTensor> states_;
  std::int64_t parameter_elements_ = 0;
  std::int64_t rounded_elements_ = 0;  // the arena's first ones, whose predicted copies are bf16
  std::vector<ArenaRange> groups_;     // of the arena, by their weight decay
  std::int64_t state_elements_ = 0;
  std::size_t slot_bytes_ = 0;
  std::size_t input_offset_ = 0, output_offset_ = 0, input_gradient_offset_ = 0, output_gradient_offset_ = 0,
              stash_offset_ = 0;

  Buffer<float> weights_, gradients_, state_values_;
  std::vector<PredictedCopy> predicted_;
  std::vector<Buffer<float>> versions_;
  Memory slots_, workspace_;
  std::unique_ptr<Optimizer> optimizer_;
  // Prepared once.
  Pointers live_pointers_;
  std::vector<Pointers> version_pointers_;
  std::vector<float*> gradient_pointers_, state_pointers_;
};

}  // namespace pipeoptim
