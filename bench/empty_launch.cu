#include "bench/empty_launch.h"
#include "kernels/runtime/launch.h"

namespace pipeoptim::bench {
namespace {

struct Nothing {
  PO_HD void operator()(std::int64_t) const {}
};

}  // namespace

void launch_nothing(Stream& stream) { for_each(stream, 1, Nothing{}); }

}  // namespace pipeoptim::bench
