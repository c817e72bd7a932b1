#include "optim/rules/all.h"

namespace pipeoptim {

template LaunchPass<RmsProp> launch_pass<RmsProp>;
template LaunchPass<Adagrad> launch_pass<Adagrad>;
template LaunchPass<Lion> launch_pass<Lion>;
template LaunchPass<MuonMatrix> launch_pass<MuonMatrix>;

}  // namespace pipeoptim
