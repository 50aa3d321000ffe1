// CPU kernels of the cross-entropy of fused logits.
#pragma once

#include "core/problem.h"
#include "ops/cpu/labels.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

// Fills loss, log_sum_exp and total_weight. Pixels with wrong labels count as ignored; the caller refuses them.
template <typename S>
WrongLabels cross_entropy_forward(const CrossEntropyForward<S>& problem, const ParallelFor& parallel_for);

template <typename S>
void cross_entropy_backward(const CrossEntropyBackward<S>& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
