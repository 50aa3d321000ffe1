// CPU kernel of sample_crop.
#pragma once

#include "core/crop.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

void sample_crop(const CropProblem& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
