// CPU kernel of fuse_scales_argmax.
#pragma once

#include "core/problem.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

template <typename S>
void argmax_forward(const ArgmaxForward<S>& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
