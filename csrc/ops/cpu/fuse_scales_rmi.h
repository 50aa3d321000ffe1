// CPU kernels of the region mutual information loss (core/fuse_scales_rmi.h).
#pragma once

#include "core/problem.h"
#include "ops/cpu/labels.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

// Fills bce and valid and, where they are not null, mean and covariance: then the image has a neighbourhood. Pixels
// with wrong labels count as ignored; the caller refuses them.
template <typename S>
WrongLabels fuse_scales_rmi_forward(const FuseScalesRmiForward<S>& problem, const ParallelFor& parallel_for);

// Where grad_covariance is null its part of the gradient is left out, and mean is not read.
template <typename S>
void fuse_scales_rmi_backward(const FuseScalesRmiBackward<S>& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
