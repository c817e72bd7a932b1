// What a pass over arrays reads and writes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/stream.h"

namespace pipeoptim::bench {

// Arrays that a pass only reads, reads and writes, and only writes. The loop leaves the `kept` ones as they
// are.
struct Traffic {
  std::vector<const float*> read = {};
  std::vector<float*> kept = {}, written = {};

  // Counts each read and write once; what a store fetches into the cache beforehand does not count.
  int bytes_per_element() const {
    return static_cast<int>(sizeof(float) * (read.size() + 2 * kept.size() + written.size()));
  }
};

// Calls function<read, kept, written>() with the numbers of arrays, for those that the passes of the rules
// have.
template <typename Function>
void with_counts(const Traffic& traffic, const Function& function) {
  switch (100 * traffic.read.size() + 10 * traffic.kept.size() + traffic.written.size()) {
    case 111:
      return function.template operator()<1, 1, 1>();
    case 112:
      return function.template operator()<1, 1, 2>();
    case 120:
      return function.template operator()<1, 2, 0>();
    case 121:
      return function.template operator()<1, 2, 1>();
    case 122:
      return function.template operator()<1, 2, 2>();
    case 130:
      return function.template operator()<1, 3, 0>();
    case 131:
      return function.template operator()<1, 3, 1>();
    case 150:
      return function.template operator()<1, 5, 0>();
    case 151:
      return function.template operator()<1, 5, 1>();
    case 201:
      return function.template operator()<2, 0, 1>();
    case 301:
      return function.template operator()<3, 0, 1>();
    case 401:
      return function.template operator()<4, 0, 1>();
    default:
      throw std::logic_error("no loop for these arrays");
  }
}

// A loop on a CUDA device over these arrays of `n` elements, with accesses of 16 bytes.
void enqueue_device_loop(Stream& stream, const Traffic& traffic, std::int64_t n);

}  // namespace pipeoptim::bench
