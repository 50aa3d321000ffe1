// CPU kernels of fuse_scales: launched over plain pointers, so that tests can call them without torch.
#pragma once

#include "core/half.h"
#include "core/problem.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {

namespace cpu {

template <typename S>
void fuse_scales_forward(const FuseScalesForward<S>& problem, const ParallelFor& parallel_for);

template <typename S>
void fuse_scales_backward(const FuseScalesBackward<S>& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
