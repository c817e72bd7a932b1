// Tables of vectors: one for each token of a vocabulary, one for each position of a sequence.
#pragma once

#include <cstdint>
#include <string>

#include "layers/layer.h"

namespace pipeoptim {

struct EmbeddingOptions {
  std::int64_t vocabulary = 0;
  std::int64_t features = 0;
  float deviation = 1;  // of the normal that the first values are drawn from; PyTorch's
};

// {N, T} -> {N, T, features}: row token(n, t) of "weight" {vocabulary, features}. Tokens come as fp32 values,
// as all inputs do; integers up to 2^24 are exact. Who reads data refuses tokens outside of the vocabulary,
// and here they become the nearest one inside. A token's gradients are summed in the order of its positions,
// by one team: the same bits for every schedule and thread count. There is no gradient of the input; where
// one is asked for, it is 0.
class Embedding final : public Layer {
 public:
  // Throws std::invalid_argument unless 1 <= vocabulary <= 2^24 and features >= 1.
  explicit Embedding(const EmbeddingOptions& options);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;

 private:
  EmbeddingOptions options_;
};

struct PositionEmbeddingOptions {
  std::int64_t positions = 0;  // of the longest sequence
  std::int64_t features = 0;
  float deviation = 1;
};

// y[n, t] = x[n, t] + weight[t], for sequences {N, T, features} with T <= positions. In place.
class PositionEmbedding final : public Layer {
 public:
  // Throws std::invalid_argument unless both are positive.
  explicit PositionEmbedding(const PositionEmbeddingOptions& options);

  std::string describe() const override;
  std::vector<Parameter> parameters() const override;
  LayerPlan plan(Device device, int threads, const Shape& input) override;
  void forward(const ForwardContext& context) const override;
  void backward_input(const BackwardContext& context) const override;
  void backward_weights(const BackwardContext& context) const override;

 private:
  PositionEmbeddingOptions options_;
};

}  // namespace pipeoptim
