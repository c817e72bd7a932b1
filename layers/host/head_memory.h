// One head of causal self-attention: where its factors and results lie, in memory and in its thread's
// scratch.
#pragma once

#if defined(__x86_64__)

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/runtime/buffer.h"
#include "layers/host/factors.h"

namespace pipeoptim::host {
namespace {

// Queries whose scores are made together: two vectors. Scores lie transposed, [key][query], so that a
// softmax goes through the keys with a query a lane, and no vector is reduced.
constexpr std::int64_t kVectors = 2, kBlock = kVectors * kLanes;

// One head, in memory and in its thread's part of the workspace. Rows behind the last position are zeros, up
// to `padded`.
template <typename Factors>
struct Head {
  using Value = typename Factors::Value;

  std::int64_t length, width, padded;
  Rows<Factors> q, k, v, output_gradient;
  float *exponents, *inverses;  // [T]: the softmax's largest exponent of 2, and one over its sum
  Value *output, *q_gradient, *k_gradient, *v_gradient;
  std::int64_t stride;  // of the output; the gradients have that of q
  bool has_next;        // the record has another head behind this one

  // Packed: [dword of columns][row], [row][dword of columns], [dword of rows][column]. The last two are the
  // same in fp32, and one array of k.
  std::uint32_t *q_transposed, *output_gradient_transposed, *k_rows, *v_rows;
  std::uint32_t *q_columns, *k_columns, *v_columns, *output_gradient_columns;
  float *scores, *score_gradients;          // [key][query] of a block
  std::uint32_t* block_keys;                // [dword of keys][query]: a factor of the queries' products
  Value *probabilities, *factor_gradients;  // [key][all queries]: factors of the keys' products

  float scale() const { return 1.0F / std::sqrt(static_cast<float>(width)); }
  float exponent_scale() const { return scale() * 1.44269504F; }  // times log2 e
};

// The arrays of a thread one behind the other; without memory, only their bytes.
struct Layout {
  std::byte* at;
  std::size_t bytes = 0;

  template <typename T>
  void place(T*& array, std::int64_t count) {
    if (at != nullptr) array = reinterpret_cast<T*>(at + bytes);
    bytes += align_up(static_cast<std::size_t>(count) * sizeof(T));
  }
};

template <typename Factors>
std::size_t place_scratch(Head<Factors>& head, std::byte* memory) {
  Layout layout{memory};
  const std::int64_t dwords = head.padded * head.width / Factors::kValues;
  for (std::uint32_t** packed :
       {&head.q_transposed, &head.output_gradient_transposed, &head.k_rows, &head.v_rows, &head.q_columns,
        &head.v_columns, &head.output_gradient_columns}) {
    layout.place(*packed, dwords);
  }
  head.k_columns = head.k_rows;
  if constexpr (Factors::kValues > 1) layout.place(head.k_columns, dwords);
  layout.place(head.scores, head.padded * kBlock);
  layout.place(head.score_gradients, head.padded * kBlock);
  layout.place(head.block_keys, head.padded / Factors::kValues * kBlock);
  layout.place(head.probabilities, head.padded * head.padded);
  layout.place(head.factor_gradients, head.padded * head.padded);
  return layout.bytes;
}

}  // namespace
}  // namespace pipeoptim::host

#endif
