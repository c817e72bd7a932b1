// Muon (Jordan et al. 2024; torch.optim.Muon): a matrix's step goes along the orthogonal factor of its
// momentum, found by a few Newton-Schulz iterations. Tensors that are no matrices are AdamW's, with the same
// learning rate.
//
// A direction is here no function of one element, and yet the passes are the others': a step first advances
// the momenta and writes each matrix's direction into a state array; from there on MuonMatrix is a rule like
// any other, which applies that array and predicts along it.
#pragma once

#include <cstddef>
#include <memory>

#include "optim/optimizer.h"

namespace pipeoptim::detail {

// `config` with its defaults filled in. Throws std::invalid_argument for matrices without a `multiply`, and
// for such that overlap.
std::unique_ptr<Optimizer> make_muon(Device device, const OptimizerConfig& config, OptimizerArena arena,
                                     MultiplyMatrices multiply);

std::size_t muon_workspace_bytes(const OptimizerArena& arena);

}  // namespace pipeoptim::detail
