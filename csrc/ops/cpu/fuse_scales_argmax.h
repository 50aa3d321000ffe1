// CPU kernel of fuse_scales_argmax.
#pragma once

#include "core/problem.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

template <typename S>
void fuse_scales_argmax(const FuseScalesArgmax<S>& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
