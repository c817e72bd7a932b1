#include "kernels/runtime/launch.h"
#include "pipeline/repeated_loss.h"

namespace pipeoptim {
namespace {

struct FetchLabels {
  const LossPlaces* places;
  std::int32_t* labels;

  PO_HD void operator()(std::int64_t i) const { labels[i] = places->labels[i]; }
};

struct HandOverResults {
  const LossPlaces* places;
  const double* loss_sum;
  const std::int32_t* correct;

  PO_HD void operator()(std::int64_t) const {
    *places->loss_sum = *loss_sum;
    *places->correct = *correct;
  }
};

}  // namespace

RepeatedLoss::RepeatedLoss(Device device, std::int64_t labels)
    : places_(device),
      labels_(device, static_cast<std::size_t>(labels)),
      loss_sum_(device, 1),
      correct_(device, 1) {}

void RepeatedLoss::post(const LossContext& context) {
  places_.post(context.stream, {context.labels, context.loss_sum, context.correct});
}

void RepeatedLoss::run(const Loss& loss, LossContext context) {
  Stream& stream = context.stream;
  places_.take(stream);
  for_each(stream, static_cast<std::int64_t>(labels_.size()), FetchLabels{places_.now(), labels_.data()});
  context.labels = labels_.data();
  context.loss_sum = loss_sum_.data();
  context.correct = correct_.data();
  loss.run(context);
  for_each(stream, 1, HandOverResults{places_.now(), loss_sum_.data(), correct_.data()});
}

}  // namespace pipeoptim
