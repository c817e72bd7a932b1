#include "layers/host/attention_heads.h"

#include <omp.h>

#include <stdexcept>
#include <type_traits>

#include "layers/host/head_passes.h"
#include "layers/host/shares.h"
#include "layers/typed.h"

namespace pipeoptim::host {

#if defined(__x86_64__)

bool AttentionHeads::handles(std::int64_t width, MatrixPrecision precision) {
  const bool there = precision == MatrixPrecision::kBf16 ? multiplies_bf16_pairs() : has_avx512();
  return there && width % kLanes == 0;
}

namespace {

template <typename Value>
using FactorsOf = std::conditional_t<std::is_same_v<Value, Bf16>, Bf16Factors, Fp32Factors>;

// Where a head's features begin in {N, T, stride}.
std::int64_t head_offset(const HeadExtents& e, std::int64_t index, std::int64_t stride) {
  return index / e.heads * e.length * stride + index % e.heads * e.width;
}

template <typename Value>
Head<FactorsOf<Value>> make_head(const HeadExtents& e) {
  Head<FactorsOf<Value>> head{};
  head.length = e.length;
  head.width = e.width;
  head.padded = quotient_up(e.length, kBlock) * kBlock;
  return head;
}

template <typename Value>
std::size_t scratch_bytes(const HeadExtents& e) {
  Head<FactorsOf<Value>> head = make_head<Value>(e);
  return place_scratch(head, nullptr);
}

// Head `index` of all records, with its thread's scratch.
template <typename Value>
Head<FactorsOf<Value>> make_head(const HeadExtents& e, const AttentionHeads::Operands& operands,
                                 std::int64_t index, std::byte* scratch) {
  Head<FactorsOf<Value>> head = make_head<Value>(e);
  place_scratch(head, scratch);
  const std::int64_t features = e.heads * e.width, stride = 3 * features;
  const Value* const q = values_of<Value>(operands.qkv) + head_offset(e, index, stride);
  head.q = {q, stride, e.length, e.width};
  head.k = {q + features, stride, e.length, e.width};
  head.v = {q + 2 * features, stride, e.length, e.width};
  head.exponents = operands.normalizers + index * 2 * e.length;
  head.inverses = head.exponents + e.length;
  head.stride = features;
  head.has_next = index % e.heads + 1 < e.heads;
  return head;
}

// Calls body(index, the thread's part of the workspace).
template <typename Body>
void for_each_head(const HeadExtents& e, [[maybe_unused]] int threads, std::byte* workspace,
                   std::size_t part_bytes, const Body& body) {
  const std::int64_t heads = e.records * e.heads;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t index = 0; index < heads; ++index) {
    body(index, workspace + part_bytes * static_cast<std::size_t>(omp_get_thread_num()));
  }
}

}  // namespace

AttentionHeads::AttentionHeads(int threads, const HeadExtents& extents, MatrixPrecision precision)
    : threads_(threads),
      extents_(extents),
      type_(precision == MatrixPrecision::kBf16 ? ElementType::kBf16 : ElementType::kFp32) {
  if (!handles(extents.width, precision)) throw std::logic_error("not for heads of this width");
  part_bytes_ = type_ == ElementType::kBf16 ? scratch_bytes<Bf16>(extents) : scratch_bytes<float>(extents);
}

void AttentionHeads::forward(Stream& stream, const Operands& operands, const Destination& output,
                             std::byte* workspace) const {
  with_type_of(output, [&]<typename Value>() {
    stream.submit([this, operands, output, workspace] {
      for_each_head(extents_, threads_, workspace, part_bytes_, [&](std::int64_t index, std::byte* scratch) {
        auto head = make_head<Value>(extents_, operands, index, scratch);
        head.output = values_of<Value>(output) + head_offset(extents_, index, head.stride);
        run_forward(head);
      });
    });
  });
}

void AttentionHeads::backward(Stream& stream, const Operands& operands, const Factor& output_gradient,
                              const Destination& qkv_gradient, std::byte* workspace) const {
  with_type_of(output_gradient, [&]<typename Value>() {
    stream.submit([this, operands, output_gradient, qkv_gradient, workspace] {
      for_each_head(extents_, threads_, workspace, part_bytes_, [&](std::int64_t index, std::byte* scratch) {
        auto head = make_head<Value>(extents_, operands, index, scratch);
        head.output_gradient = {values_of<Value>(output_gradient) + head_offset(extents_, index, head.stride),
                                head.stride, head.length, head.width};
        head.q_gradient = values_of<Value>(qkv_gradient) + (head.q.from - values_of<Value>(operands.qkv));
        head.k_gradient = head.q_gradient + head.stride;
        head.v_gradient = head.k_gradient + head.stride;
        run_backward(head);
      });
    });
  });
}

#else

bool AttentionHeads::handles(std::int64_t, MatrixPrecision) { return false; }
AttentionHeads::AttentionHeads(int threads, const HeadExtents& extents, MatrixPrecision)
    : threads_(threads), extents_(extents), type_(ElementType::kFp32) {
  throw std::logic_error("no products of our own on this processor");
}
void AttentionHeads::forward(Stream&, const Operands&, const Destination&, std::byte*) const {}
void AttentionHeads::backward(Stream&, const Operands&, const Factor&, const Destination&, std::byte*) const {
}

#endif

}  // namespace pipeoptim::host
