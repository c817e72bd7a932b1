// The loss as work that is enqueued once, as a part of a graph, and repeated: labels and results of each
// micro-batch have places of their own, the loss has one for all. Private to pipeline.
#pragma once

#include <cstdint>

#include "kernels/runtime/buffer.h"
#include "kernels/runtime/turns.h"
#include "layers/layer.h"

namespace pipeoptim {

// Where a micro-batch's labels lie, and its results go.
struct LossPlaces {
  const std::int32_t* labels = nullptr;
  double* loss_sum = nullptr;
  std::int32_t* correct = nullptr;
};

// Of one stream, whose order keeps one micro-batch's labels and results from another's.
class RepeatedLoss {
 public:
  RepeatedLoss(Device device, std::int64_t labels);

  void restart(Stream& stream) { places_.restart(stream); }
  // From the host, each time before what run() enqueues runs. Nothing but these places may differ.
  void post(const LossContext& context);
  void run(const Loss& loss, LossContext context);

 private:
  Turns<LossPlaces> places_;
  Buffer<std::int32_t> labels_;
  Buffer<double> loss_sum_;
  Buffer<std::int32_t> correct_;
};

}  // namespace pipeoptim
