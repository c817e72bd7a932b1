// What a pass over arrays reads and writes.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/bf16.h"
#include "kernels/runtime/stream.h"

namespace pipeoptim::bench {

// Arrays that a pass only reads, reads and writes, and only writes, in fp32 or rounded to bf16. The loop
// leaves the `kept` ones as they are.
struct Traffic {
  std::vector<const float*> read = {};
  std::vector<float*> kept = {}, written = {};
  std::vector<Bf16*> rounded = {};

  // Counts each read and write once; what a store fetches into the cache beforehand does not count.
  int bytes_per_element() const {
    return static_cast<int>(sizeof(float) * (read.size() + 2 * kept.size() + written.size()) +
                            sizeof(Bf16) * rounded.size());
  }
};

// Calls function<read, kept, written, rounded>() with the numbers of arrays, for those that the passes of the
// rules have.
template <typename Function>
void with_counts(const Traffic& traffic, const Function& function) {
  const std::size_t updated = 10 * traffic.read.size() + traffic.kept.size();
  switch (100 * updated + 10 * traffic.written.size() + traffic.rounded.size()) {
    case 1000:
      return function.template operator()<1, 0, 0, 0>();
    case 1110:
      return function.template operator()<1, 1, 1, 0>();
    case 1120:
      return function.template operator()<1, 1, 2, 0>();
    case 1200:
      return function.template operator()<1, 2, 0, 0>();
    case 1201:
      return function.template operator()<1, 2, 0, 1>();
    case 1210:
      return function.template operator()<1, 2, 1, 0>();
    case 1220:
      return function.template operator()<1, 2, 2, 0>();
    case 1300:
      return function.template operator()<1, 3, 0, 0>();
    case 1301:
      return function.template operator()<1, 3, 0, 1>();
    case 1310:
      return function.template operator()<1, 3, 1, 0>();
    case 1320:
      return function.template operator()<1, 3, 2, 0>();
    case 1500:
      return function.template operator()<1, 5, 0, 0>();
    case 1501:
      return function.template operator()<1, 5, 0, 1>();
    case 1510:
      return function.template operator()<1, 5, 1, 0>();
    case 2001:
      return function.template operator()<2, 0, 0, 1>();
    case 2010:
      return function.template operator()<2, 0, 1, 0>();
    case 3001:
      return function.template operator()<3, 0, 0, 1>();
    case 3010:
      return function.template operator()<3, 0, 1, 0>();
    case 4001:
      return function.template operator()<4, 0, 0, 1>();
    case 4010:
      return function.template operator()<4, 0, 1, 0>();
    default:
      throw std::logic_error("no loop for these arrays");
  }
}

// A loop on a CUDA device over these arrays of `n` elements, with accesses of 16 bytes.
void enqueue_device_loop(Stream& stream, const Traffic& traffic, std::int64_t n);

}  // namespace pipeoptim::bench
