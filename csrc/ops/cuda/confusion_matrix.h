// CUDA kernels of confusion_matrix: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/confusion_matrix.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

// How many numbers the kernels need for the histograms of their blocks.
int64_t confusion_matrix_partials(const ConfusionMatrix& problem);

void launch_confusion_matrix(const ConfusionMatrix& problem, uint32_t* partials, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
