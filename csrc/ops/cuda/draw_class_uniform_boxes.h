// CUDA kernel of draw_class_uniform_boxes: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/draw_class_uniform_boxes.h"

namespace hmsa {
namespace cuda {

using StreamHandle = void*;  // cudaStream_t

void launch_draw_class_uniform_boxes(const DrawClassUniformBoxes& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
