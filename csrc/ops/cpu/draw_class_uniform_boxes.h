// CPU kernel of draw_class_uniform_boxes.
#pragma once

#include "core/draw_class_uniform_boxes.h"
#include "ops/cpu/parallel_for.h"

namespace hmsa {
namespace cpu {

void draw_class_uniform_boxes(const DrawClassUniformBoxes& problem, const ParallelFor& parallel_for);

}  // namespace cpu
}  // namespace hmsa
