// CUDA kernel of confusion_matrix: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/confusion_matrix.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

void launch_confusion_matrix(const ConfusionMatrix& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
