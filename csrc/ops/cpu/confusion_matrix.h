// CPU kernel of confusion_matrix.
#pragma once

#include "core/confusion_matrix.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

void confusion_matrix(const ConfusionMatrix& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
