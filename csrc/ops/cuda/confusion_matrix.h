// CUDA kernel of confusion_matrix: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/confusion_matrix.h"

namespace hmsa {
namespace cuda {

using StreamHandle = void*;  // cudaStream_t

void launch_confusion_matrix(const ConfusionMatrix& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
