// CUDA kernel of draw_class_uniform_boxes: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/draw_class_uniform_boxes.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

void launch_draw_class_uniform_boxes(const DrawClassUniformBoxes& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
