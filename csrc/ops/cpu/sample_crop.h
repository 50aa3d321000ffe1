// CPU kernel of sample_crop.
#pragma once

#include "core/sample_crop.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

void sample_crop(const SampleCrop& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
