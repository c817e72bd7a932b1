#include "optim/rules/all.h"

namespace pipeoptim {

template LaunchPass<Adam> launch_pass<Adam>;
template LaunchPass<AdamW> launch_pass<AdamW>;

}  // namespace pipeoptim
