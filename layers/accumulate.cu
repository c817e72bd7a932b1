#include "kernels/runtime/launch.h"
#include "layers/accumulate.h"
#include "layers/elementwise.h"
#include "layers/lanes.h"
#include "layers/typed.h"

namespace pipeoptim {

void accumulate(Stream& stream, std::int64_t count, const float* terms, float* sums) {
  for_each(stream, count, Map2<SumOf>{sums, terms, sums});
}

void accumulate(Stream& stream, const ConstTensor& terms, const Tensor& sums) {
  with_type_of(terms, [&]<typename T>() {
    T* const to = values_of<T>(sums);
    for_each(stream, terms.elements(), Map2<SumOf, T>{to, values_of<T>(terms), to});
  });
}

}  // namespace pipeoptim
