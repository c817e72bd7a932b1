#include "kernels/runtime/instruction_set.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

#include "kernels/runtime/names.h"

namespace pipeoptim {
namespace {

constexpr InstructionSet kAll[] = {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512};

// What launch_host.h compiles for, and the operating system's part: that it saves the registers.
bool usable(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::kAvx2) return __builtin_cpu_supports("avx2") != 0;
  if (set == InstructionSet::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return set == InstructionSet::kBaseline;
}

InstructionSet choose() {
  const char* const name = std::getenv("PIPEOPTIM_ISA");
  const std::vector<InstructionSet> here = usable_instruction_sets();
  if (name == nullptr || *name == '\0') return here.back();
  const auto is_named = [name](InstructionSet set) { return to_string(set) == name; };
  const auto found = std::find_if(here.begin(), here.end(), is_named);
  if (found != here.end()) return *found;
  if (std::any_of(std::begin(kAll), std::end(kAll), is_named)) {
    throw std::invalid_argument("PIPEOPTIM_ISA is '" + std::string(name) +
                                "', which this processor does not have; its best is " +
                                to_string(here.back()));
  }
  throw std::invalid_argument("PIPEOPTIM_ISA: " +
                              unknown_name("instruction set", name, usable_instruction_set_names()));
}

}  // namespace

std::string to_string(InstructionSet set) {
  switch (set) {
    case InstructionSet::kBaseline:
      return "baseline";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
  }
  throw std::logic_error("an instruction set without a name");
}

std::vector<InstructionSet> usable_instruction_sets() {
  std::vector<InstructionSet> sets;
  std::copy_if(std::begin(kAll), std::end(kAll), std::back_inserter(sets), usable);
  return sets;
}

std::vector<std::string> usable_instruction_set_names() {
  std::vector<std::string> names;
  for (const InstructionSet set : usable_instruction_sets()) names.push_back(to_string(set));
  return names;
}

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace pipeoptim
