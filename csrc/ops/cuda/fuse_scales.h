// CUDA kernels of fuse_scales: launched over plain device pointers; nothing here knows torch.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/problem.h"
#include "ops/cuda/stream_handle.h"
#include "ops/cuda/workspace.h"

namespace hmsa {
namespace cuda {

template <typename S>
void launch_fuse_scales_forward(const FuseScalesForward<S>& problem, StreamHandle stream);

// Most chains need no workspace; others one number for each pixel of the output and each scale of 1 and below (but the
// largest) whose attention gets a gradient.
template <typename S>
void launch_fuse_scales_backward(const FuseScalesBackward<S>& problem, const Workspace& workspace, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
