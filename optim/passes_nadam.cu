#include "optim/rules/all.h"

namespace pipeoptim {

template LaunchPass<NAdam> launch_pass<NAdam>;
template LaunchPass<Adan> launch_pass<Adan>;

}  // namespace pipeoptim
