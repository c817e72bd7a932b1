#include "optim/rules/all.h"

namespace pipeoptim {

template LaunchPass<Sgd> launch_pass<Sgd>;
template LaunchPass<SgdMomentum> launch_pass<SgdMomentum>;
template LaunchPass<ReleasedSgdMomentum> launch_pass<ReleasedSgdMomentum>;
template LaunchPass<SpikeCompensation> launch_pass<SpikeCompensation>;
template LaunchPass<Nesterov> launch_pass<Nesterov>;

}  // namespace pipeoptim
