// The CUDA side of the launches. Bodies stay in the constant bank (__grid_constant__): indexing an array
// inside of a body costs no local memory.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <cub/block/block_reduce.cuh>
#include <type_traits>

#include "kernels/runtime/cuda/cuda_check.h"
#include "kernels/runtime/macros.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kBlock = 256;
inline constexpr int kWarpsOfBlock = kBlock / kWarp;
// Of a multiprocessor: grants 64 registers a thread. Without it ptxas aims at full occupancy and spills.
inline constexpr int kLeastBlocks = 4;
inline constexpr std::int64_t kBlockRowLength = 512;  // from here on a row is worth a block

// A warp that shares a row. Operations must be commutative; all members get the same bits.
class WarpTeam {
 public:
  __device__ int rank() const { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static constexpr int size() { return kWarp; }

  template <typename T, typename Op>
  __device__ T reduce(T value, Op op) const {
    static_assert(std::is_arithmetic_v<T>, "teams reduce numbers");
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      value = op(value, static_cast<T>(__shfl_xor_sync(0xFFFFFFFFU, value, distance)));
    }
    return value;
  }
};

// A block that shares a row. All members must call reduce(), and get the same bits.
class BlockTeam {
 public:
  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ static constexpr int size() { return kBlock; }

  template <typename T, typename Op>
  __device__ T reduce(T value, Op op) const {
    static_assert(std::is_arithmetic_v<T>, "teams reduce numbers");
    using Reduce = cub::BlockReduce<T, kBlock>;
    __shared__ typename Reduce::TempStorage storage;
    __shared__ T all;
    const T total = Reduce(storage).Reduce(value, op);
    if (threadIdx.x == 0) all = total;
    __syncthreads();  // with the barrier inside of Reduce, enough for the next call to reuse both
    return all;
  }

  // For members of a rank below `period`: the values of all whose ranks differ from theirs by multiples of
  // it, added up by T::add. All members must call it.
  template <typename T>
  __device__ T fold(T value, int period) const {
    __shared__ T values[kBlock];
    __syncthreads();  // after the readers of an earlier call
    values[rank()] = value;
    __syncthreads();
    if (rank() < period) {
      for (int other = rank() + period; other < kBlock; other += period) value.add(values[other]);
    }
    return value;
  }

  // Which members say yes: member i is bit i % 32 of word i / 32. The words stay until the next call. All
  // members must call it.
  __device__ const std::uint32_t* vote(bool yes) const {
    __shared__ std::uint32_t words[kWarpsOfBlock];
    __syncthreads();  // after the readers of an earlier call
    const std::uint32_t word = __ballot_sync(0xFFFFFFFFU, yes ? 1 : 0);
    if (rank() % kWarp == 0) words[rank() / kWarp] = word;
    __syncthreads();
    return words;
  }
};

// A body whose rows are always long says so, and no kernel is made for short ones.
template <typename Body>
concept LongRowsBody = requires {
  typename Body::LongRows;
};

template <typename Body>
concept PackedBody = requires(const Body& body, std::int64_t i) {
  body.template at<Body::kWidth>(i);
  { body.packs() } -> std::convertible_to<bool>;
};

template <typename Body>
__global__ void __launch_bounds__(kBlock, kLeastBlocks)
    for_each_kernel(std::int64_t n, const __grid_constant__ Body body) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
  if (i < n) body(i);
}

template <typename Body>
__global__ void __launch_bounds__(kBlock, kLeastBlocks)
    for_each_pack_kernel(std::int64_t n, const __grid_constant__ Body body) {
  constexpr int kWidth = Body::kWidth;
  const std::int64_t begin = kWidth * (std::int64_t{blockIdx.x} * kBlock + threadIdx.x);
  if (begin + kWidth <= n) return body.template at<kWidth>(begin);
  for (std::int64_t i = begin; i < n; ++i) body(i);
}

template <typename Body>
__global__ void __launch_bounds__(kBlock, kLeastBlocks)
    for_each_row_of_warp_kernel(std::int64_t rows, const __grid_constant__ Body body) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarpsOfBlock + threadIdx.x / kWarp;
  if (row < rows) body(row, WarpTeam{});
}

template <typename Body>
__global__ void __launch_bounds__(kBlock, kLeastBlocks)
    for_each_row_of_block_kernel(std::int64_t, const __grid_constant__ Body body) {
  body(std::int64_t{blockIdx.x}, BlockTeam{});
}

template <typename Body>
void launch(const Stream& stream, void (*kernel)(std::int64_t, Body), std::int64_t blocks, std::int64_t count,
            const Body& body, const char* name) {
  constexpr std::int64_t kMostBlocks = 0x7FFFFFFF;
  if (blocks > kMostBlocks)
    throw std::invalid_argument(std::string(name) + ": more work than a grid has blocks");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kBlock);
  config.stream = static_cast<cudaStream_t>(stream.native());
  check(cudaLaunchKernelEx(&config, kernel, count, body), name);
}

// A thread has one element or pack: blocks that come and go read memory 5 % faster than resident ones that
// loop.
inline std::int64_t blocks_of(std::int64_t threads) { return (threads + kBlock - 1) / kBlock; }

template <typename Body>
void for_each(Stream& stream, std::int64_t n, const Body& body) {
  const DeviceGuard guard(stream.device());
  if constexpr (PackedBody<Body>) {
    if (body.packs()) {
      const std::int64_t packs = (n + Body::kWidth - 1) / Body::kWidth;
      return launch(stream, for_each_pack_kernel<Body>, blocks_of(packs), n, body, "for_each in packs");
    }
  }
  launch(stream, for_each_kernel<Body>, blocks_of(n), n, body, "for_each");
}

template <typename Body>
void for_each_row(Stream& stream, std::int64_t rows, std::int64_t row_length, const Body& body) {
  const DeviceGuard guard(stream.device());
  if constexpr (!LongRowsBody<Body>) {
    if (row_length < kBlockRowLength) {
      const std::int64_t blocks = (rows + kWarpsOfBlock - 1) / kWarpsOfBlock;
      return launch(stream, for_each_row_of_warp_kernel<Body>, blocks, rows, body,
                    "for_each_row, a warp a row");
    }
  }
  launch(stream, for_each_row_of_block_kernel<Body>, rows, rows, body, "for_each_row, a block a row");
}

}  // namespace pipeoptim::cuda
