// All rules of the library. Their passes are compiled in a file for each group of rules, not where they are
// used: they take far longer than the rest.
#pragma once

#include "optim/passes.h"
#include "optim/rules/adam.h"
#include "optim/rules/adaptive.h"
#include "optim/rules/lion.h"
#include "optim/rules/muon.h"
#include "optim/rules/sgd.h"

namespace pipeoptim {

template <typename Rule>
using LaunchPass = void(Stream&, const ChunkList&, Update, Prediction, const StepArguments<Rule>&);

extern template LaunchPass<Sgd> launch_pass<Sgd>;
extern template LaunchPass<SgdMomentum> launch_pass<SgdMomentum>;
extern template LaunchPass<ReleasedSgdMomentum> launch_pass<ReleasedSgdMomentum>;
extern template LaunchPass<SpikeCompensation> launch_pass<SpikeCompensation>;
extern template LaunchPass<Nesterov> launch_pass<Nesterov>;
extern template LaunchPass<Adam> launch_pass<Adam>;
extern template LaunchPass<AdamW> launch_pass<AdamW>;
extern template LaunchPass<NAdam> launch_pass<NAdam>;
extern template LaunchPass<Adan> launch_pass<Adan>;
extern template LaunchPass<RmsProp> launch_pass<RmsProp>;
extern template LaunchPass<Adagrad> launch_pass<Adagrad>;
extern template LaunchPass<Lion> launch_pass<Lion>;
extern template LaunchPass<MuonMatrix> launch_pass<MuonMatrix>;

}  // namespace pipeoptim
