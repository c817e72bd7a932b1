#include "models/init.h"

#include <cmath>
#include <numbers>

#include "models/draws.h"

namespace pipeoptim {

namespace {

// The middle of one of 2^32 equal pieces of (0, 1): never 0, never 1.
double unit(std::uint64_t seed, std::uint64_t parameter, std::uint64_t element) {
  return (draw(seed, Purpose::kInitialize, parameter, element) + 0.5) * 0x1p-32;
}

}  // namespace

std::vector<float> initial_values(const Initializer& initializer, const Shape& shape, std::uint64_t seed,
                                  std::uint64_t parameter, std::uint64_t first) {
  std::vector<float> values(static_cast<std::size_t>(shape.elements()), initializer.value);
  if (initializer.kind == Initializer::Kind::kConstant) return values;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint64_t element = first + i;
    double value = 0;
    if (initializer.kind == Initializer::Kind::kUniform) {
      value = 2 * unit(seed, parameter, element) - 1;
    } else {  // Box-Muller, one of the pair
      const double radius = std::sqrt(-2 * std::log(unit(seed, parameter, 2 * element)));
      value = radius * std::cos(2 * std::numbers::pi * unit(seed, parameter, 2 * element + 1));
    }
    values[i] = static_cast<float>(static_cast<double>(initializer.value) * value);
  }
  return values;
}

}  // namespace pipeoptim
