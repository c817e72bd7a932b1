// Convolutions of images that are smaller than the kernel, as products with a dense matrix.
#pragma once

#include <memory>

#include "layers/provider.h"

namespace pipeoptim::host {

// Whether the image has no more pixels than the kernel taps, and the matrix at most two elements a weight.
bool suits_dense_convolution(const ConvolutionSpec& spec);

// A linear map of whole records: the weights of each pair of pixels are copied into a matrix of [output
// pixel, out, input pixel, in], zeros where they do not meet, and gradients are added up over the pairs of a
// tap. A direct convolution multiplies what lies outside of the image, too: of 3x3 taps on 2x2 pixels five of
// nine. A value that is not finite spreads to all pixels of its record.
std::unique_ptr<ConvolutionPlan> make_dense_convolution(int threads, const ConvolutionSpec& spec);

}  // namespace pipeoptim::host
