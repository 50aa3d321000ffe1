// CPU kernels of the cross-entropy of fused logits.
#pragma once

#include "core/problem.h"
#include "ops/cpu/labels.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

// Fills loss, log_sum_exp and total_weight. Pixels with wrong labels count as ignored; the caller refuses them.
template <typename S>
WrongLabels fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<S>& problem,
                                              const ParallelFor& parallel_for);

template <typename S>
void fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<S>& problem,
                                        const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
