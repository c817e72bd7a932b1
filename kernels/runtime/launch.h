// The two launches. A body is a trivially copyable named functor, passed by value; it holds pointers and
// scalars.
//
//   for_each(stream, n, body)        calls body(i) for every i in [0, n), in any order
//   for_each_row(stream, rows, row_length, body) calls body(row, team) for every row; the members of a team
//   share it
//
// for_each on CUDA can move 16 bytes an access. A body asks for it with three more members (see pack.h):
//
//   static constexpr int kWidth = 4                  elements of a pack, 16 bytes (8 of bf16)
//   template <int kWidth> PO_HD void at(i) const     the elements i to i + kWidth - 1; body(i) is at<1>(i)
//   bool packs() const                               on the host: whether its arrays allow_packs(...)
//
// for_each_row on CUDA gives a warp to a short row and a block to a long one; a body with `using LongRows =
// void` always gets a block, and the other kernel is not compiled.
//
// Include this header only from .cu files: a launcher instantiated by two compilers would be an ODR
// violation.
#pragma once

#ifndef PIPEOPTIM_KERNEL_FILE
#error "include launch.h only from .cu files"
#endif

#include <cstdint>

#include "kernels/runtime/macros.h"
#include "kernels/runtime/pack.h"
#include "kernels/runtime/stream.h"

#if defined(__CUDACC__)
#include "kernels/runtime/cuda/launch_cuda.h"
#endif
#include "kernels/runtime/host/launch_host.h"

namespace pipeoptim {

template <typename Body>
void for_each(Stream& stream, std::int64_t n, const Body& body) {
  static_assert(std::is_trivially_copyable_v<Body>);
  if (n <= 0) return;
#if defined(__CUDACC__)
  if (stream.device().backend == Backend::kCuda) return cuda::for_each(stream, n, body);
#endif
  host::for_each(stream, n, body);
}

template <typename Body>
void for_each_row(Stream& stream, std::int64_t rows, std::int64_t row_length, const Body& body) {
  static_assert(std::is_trivially_copyable_v<Body>);
  static_cast<void>(row_length);  // only a device chooses the team by it
  if (rows <= 0) return;
#if defined(__CUDACC__)
  if (stream.device().backend == Backend::kCuda) return cuda::for_each_row(stream, rows, row_length, body);
#endif
  host::for_each_row(stream, rows, body);
}

}  // namespace pipeoptim
