// CUDA kernels of fuse_scales: launched over plain device pointers; nothing here knows torch.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/problem.h"

namespace hmsa {
namespace cuda {

using StreamHandle = void*;  // cudaStream_t

template <typename S>
void launch_fuse_scales_forward(const FuseScalesForward<S>& problem, StreamHandle stream);

// Numbers of the arithmetic type that the backward kernels need as workspace: one for each pixel of the output and
// each scale of 1 and below (but the largest) whose attention gets a gradient, also where attention is class-wise.
template <typename S>
int64_t fuse_scales_backward_workspace(const FuseScalesBackward<S>& problem);

template <typename S>
void launch_fuse_scales_backward(const FuseScalesBackward<S>& problem, void* workspace, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
