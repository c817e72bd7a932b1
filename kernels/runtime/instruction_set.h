// Which of the processor's instructions the host's kernels use. Everything is compiled for a baseline that
// any processor of its kind has; each loop of a launch has a version for every other set, too, and the
// processor is asked at run time. All versions give the same bits.
#pragma once

#include <string>
#include <vector>

namespace pipeoptim {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// "baseline", "avx2", "avx512".
std::string to_string(InstructionSet set);

// Those that this processor (and this build) has, the best one last.
std::vector<InstructionSet> usable_instruction_sets();
std::vector<std::string> usable_instruction_set_names();

// The best one, or that which the environment variable PIPEOPTIM_ISA names, looked up once. Throws
// std::invalid_argument where there is no such set, or not here.
InstructionSet instruction_set();

}  // namespace pipeoptim
