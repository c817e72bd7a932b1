// Softmax followed by the cross-entropy, the mean over the mini-batch.
#pragma once

#include "layers/layer.h"

namespace pipeoptim {

// loss = -sum_c q_c log p_c with p = softmax(logits) and q = (1 - s) onehot(label) + s / classes (label
// smoothing s: Szegedy et al., arXiv 1512.00567; PyTorch's CrossEntropyLoss), for each row of {N, classes} or
// {N, T, classes}. Rows with a negative label count for nothing; one that is no class makes the loss NaN.
class SoftmaxCrossEntropy final : public Loss {
 public:
  // Throws std::invalid_argument unless 0 <= smoothing < 1.
  explicit SoftmaxCrossEntropy(double smoothing = 0);

  std::size_t workspace_bytes(const Shape& logits) const override;
  void run(const LossContext& context) const override;

 private:
  float smoothing_;
};

}  // namespace pipeoptim
