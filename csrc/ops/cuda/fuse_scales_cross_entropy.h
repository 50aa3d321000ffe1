// CUDA kernels of fuse_scales_cross_entropy: launched over plain device pointers; nothing here knows torch.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/problem.h"
#include "ops/cuda/stream_handle.h"
#include "ops/cuda/workspace.h"

namespace hmsa {
namespace cuda {

// Numbers of double that the forward kernels need as workspace: two for each tile of the output.
template <typename S>
int64_t fuse_scales_cross_entropy_forward_workspace(const FuseScalesCrossEntropyForward<S>& problem);

// A label that is neither a class nor ignore_index makes the loss NaN, of its pixel and in total.
template <typename S>
void launch_fuse_scales_cross_entropy_forward(const FuseScalesCrossEntropyForward<S>& problem, void* workspace,
                                              StreamHandle stream);

// Chains of octaves need no workspace, others at most 16 MB unless a single element of a head reaches more of the output
// than that (band_backward.cuh).
template <typename S>
void launch_fuse_scales_cross_entropy_backward(const FuseScalesCrossEntropyBackward<S>& problem,
                                               const Workspace& workspace, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
