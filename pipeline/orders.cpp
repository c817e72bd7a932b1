#include "pipeline/orders.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace pipeoptim {
namespace {

// `warm_up` forwards, then forward and backward in turn, then the backwards that are left.
Turns one_forward_one_backward(std::int32_t workers, std::int32_t count, auto&& warm_up_of) {
  Turns turns(static_cast<std::size_t>(workers));
  for (std::int32_t k = 0; k < workers; ++k) {
    std::vector<Turn>& list = turns[static_cast<std::size_t>(k)];
    const std::int32_t warm_up = std::min<std::int32_t>(warm_up_of(k), count);
    for (std::int32_t j = 0; j < warm_up; ++j) list.push_back({Op::kForward, k, j});
    for (std::int32_t j = 0; j < count; ++j) {
      if (warm_up + j < count) list.push_back({Op::kForward, k, warm_up + j});
      list.push_back({Op::kBackward, k, j});
    }
  }
  return turns;
}

struct ChunkOfMicrobatch {
  std::int32_t chunk, microbatch;
};

// Groups of as many micro-batches as there are workers go through all chunks, one chunk after the other. The
// last group is made whole by micro-batches from `count` on, which do not exist and are left out again.
std::vector<ChunkOfMicrobatch> chunk_order(std::int32_t workers, std::int32_t chunks, std::int32_t count,
                                           bool reverse) {
  std::vector<ChunkOfMicrobatch> order;
  for (std::int32_t first = 0; first < count; first += workers) {
    for (std::int32_t i = 0; i < chunks; ++i) {
      for (std::int32_t j = first; j < first + workers; ++j)
        order.push_back({reverse ? chunks - 1 - i : i, j});
    }
  }
  return order;
}

// Narayanan et al., arXiv 2104.04473, figure 4: 1F1B over the chunks of a worker.
Turns interleaved(std::int32_t workers, std::int32_t chunks, std::int32_t count) {
  const auto forwards = chunk_order(workers, chunks, count, false);
  const auto backwards = chunk_order(workers, chunks, count, true);
  Turns turns(static_cast<std::size_t>(workers));
  for (std::int32_t d = 0; d < workers; ++d) {
    std::vector<Turn>& list = turns[static_cast<std::size_t>(d)];
    const auto append = [&](Op op, const ChunkOfMicrobatch& at) {
      if (at.microbatch < count) list.push_back({op, at.chunk * workers + d, at.microbatch});
    };
    const auto warm_up = std::min<std::size_t>(
        static_cast<std::size_t>((chunks - 1) * workers + 2 * (workers - 1 - d)), forwards.size());
    for (std::size_t i = 0; i < warm_up; ++i) append(Op::kForward, forwards[i]);
    for (std::size_t i = 0; i < backwards.size(); ++i) {
      if (warm_up + i < forwards.size()) append(Op::kForward, forwards[warm_up + i]);
      append(Op::kBackward, backwards[i]);
    }
  }
  return turns;
}

// One worker of ZB-V: appends the next micro-batch of a chunk, as long as there is one.
class VWriter {
 public:
  VWriter(std::vector<Turn>& list, std::array<std::int32_t, 2> stages, std::int32_t count)
      : list_(list), stages_(stages), count_(count) {}

  void forward(int chunk) { append(Op::kForward, chunk); }
  void backward_input(int chunk) { append(Op::kBackwardInput, chunk); }
  void backward_weights(int chunk) { append(Op::kBackwardWeights, chunk); }
  void backward(int chunk) {
    backward_input(chunk);
    backward_weights(chunk);
  }
  std::int32_t done(Op op, int chunk) const { return next_[index(op)][static_cast<std::size_t>(chunk)]; }

 private:
  static std::size_t index(Op op) { return op == Op::kForward ? 0 : op == Op::kBackwardInput ? 1 : 2; }
  void append(Op op, int chunk) {
    std::int32_t& next = next_[index(op)][static_cast<std::size_t>(chunk)];
    if (next < count_) list_.push_back({op, stages_[static_cast<std::size_t>(chunk)], next++});
  }
  std::vector<Turn>& list_;
  std::array<std::int32_t, 2> stages_;
  std::int32_t count_;
  std::array<std::array<std::int32_t, 2>, 3> next_{};
};

// Qi et al., arXiv 2405.15362 and 2401.10241: two chunks a worker, the second on the way back.
Turns zero_bubble_v(std::int32_t workers, std::int32_t count) {
  Turns turns(static_cast<std::size_t>(workers));
  for (std::int32_t d = 0; d < workers; ++d) {
    VWriter w(turns[static_cast<std::size_t>(d)], {d, 2 * workers - 1 - d}, count);
    for (std::int32_t i = 0; i < 2 * (workers - d) - 1; ++i) w.forward(0);
    for (std::int32_t i = 0; i < d; ++i) {
      w.forward(1);
      w.forward(0);
    }
    for (std::int32_t i = 0; i < workers - d; ++i) {
      w.forward(1);
      w.backward(1);
    }
    while (w.done(Op::kForward, 1) < w.done(Op::kForward, 0) || w.done(Op::kForward, 0) < count) {
      w.forward(0);
      w.backward(0);
      w.forward(1);
      w.backward(1);
    }
    for (std::int32_t i = 0; i < d; ++i) {
      w.backward_input(0);
      w.backward_input(1);
    }
    for (std::int32_t i = 0; i < workers - d; ++i) w.backward(0);
    for (const int chunk : {1, 0}) {
      while (w.done(Op::kBackwardWeights, chunk) < w.done(Op::kBackwardInput, chunk))
        w.backward_weights(chunk);
    }
  }
  return turns;
}

}  // namespace

std::int32_t stage_of(ComputeOrder order, std::int32_t workers, std::int32_t worker, std::int32_t chunk) {
  const bool back = order == ComputeOrder::kZeroBubbleV && chunk % 2 == 1;
  return chunk * workers + (back ? workers - 1 - worker : worker);
}

Turns zero_bubble_turns(std::int32_t workers, std::int32_t count, std::int32_t depth_factor) {
  Turns turns(static_cast<std::size_t>(workers));
  for (std::int32_t k = 0; k < workers; ++k) {
    std::vector<Turn>& list = turns[static_cast<std::size_t>(k)];
    const std::int32_t warm_up = std::min(depth_factor * (workers - 1 - k), count);
    const std::int32_t behind = depth_factor * k;
    for (std::int32_t j = 0; j < warm_up; ++j) list.push_back({Op::kForward, k, j});
    for (std::int32_t j = 0; j < count; ++j) {
      if (warm_up + j < count) list.push_back({Op::kForward, k, warm_up + j});
      list.push_back({Op::kBackwardInput, k, j});
      if (j >= behind) list.push_back({Op::kBackwardWeights, k, j - behind});
    }
    for (std::int32_t j = std::max(count - behind, 0); j < count; ++j) {
      list.push_back({Op::kBackwardWeights, k, j});
    }
  }
  return turns;
}

Turns make_turns(const OrderRequest& request) {
  const std::int32_t workers = request.workers;
  const std::int32_t count = request.count;
  switch (request.order) {
    case ComputeOrder::kSequential:
      return one_forward_one_backward(workers, count, [](std::int32_t) { return 0; });
    case ComputeOrder::kGpipe:
      return one_forward_one_backward(workers, count, [&](std::int32_t) { return count; });
    case ComputeOrder::kDelayed:
      return one_forward_one_backward(workers, count, [&](std::int32_t) { return request.delay; });
    case ComputeOrder::kOneForwardOneBackward:
    case ComputeOrder::kAsynchronous:
      if (request.chunks > 1) return interleaved(workers, request.chunks, count);
      return one_forward_one_backward(workers, count, [&](std::int32_t k) { return workers - 1 - k; });
    case ComputeOrder::kZeroBubbleH1:
      return zero_bubble_turns(workers, count, 1);
    case ComputeOrder::kZeroBubbleH2:
      return zero_bubble_turns(workers, count, 2);
    case ComputeOrder::kZeroBubbleV:
      return zero_bubble_v(workers, count);
    case ComputeOrder::kZeroBubbleAuto:
      return place_weight_gradients(request);
  }
  throw std::logic_error("unknown order");
}

}  // namespace pipeoptim
