// What the host's plans share: the number of threads that they are made for. oneDNN fixes it when a primitive
// is made.
#pragma once

#include <omp.h>

#include <stdexcept>
#include <string>

#include "kernels/runtime/stream.h"

namespace pipeoptim::host {

// While it lives, primitives are made for this many threads.
class PlanningThreads {
 public:
  explicit PlanningThreads(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~PlanningThreads() { omp_set_num_threads(before_); }
  PlanningThreads(const PlanningThreads&) = delete;
  PlanningThreads& operator=(const PlanningThreads&) = delete;

 private:
  int before_;
};

inline void require_threads(const char* operation, int planned, const Stream& stream) {
  if (stream.threads() != planned) {
    throw std::logic_error(std::string(operation) + " planned for " + std::to_string(planned) +
                           " threads, run on " + std::to_string(stream.threads()));
  }
}

}  // namespace pipeoptim::host
