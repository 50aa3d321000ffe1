// CUDA kernel of draw_class_uniform_boxes: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/class_uniform.h"

namespace hmsa {
namespace cuda {

using StreamHandle = void*;  // cudaStream_t

void launch_class_uniform_boxes(const ClassUniformProblem& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
