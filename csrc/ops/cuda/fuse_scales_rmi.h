// CUDA kernels of the region mutual information loss (core/fuse_scales_rmi.h): launched over plain device pointers;
// nothing here knows torch.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/problem.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

// Bytes that the kernels need as workspace, 16 MB at most unless a single row of windows or a single element of a head
// reaches more of the output than that.
template <typename S>
int64_t fuse_scales_rmi_forward_workspace(const FuseScalesRmiForward<S>& problem);
template <typename S>
int64_t fuse_scales_rmi_backward_workspace(const FuseScalesRmiBackward<S>& problem);

// A label that is neither a class nor ignore_index makes the binary cross-entropy NaN.
template <typename S>
void launch_fuse_scales_rmi_forward(const FuseScalesRmiForward<S>& problem, void* workspace, StreamHandle stream);

// ... and the gradient of its pixel.
template <typename S>
void launch_fuse_scales_rmi_backward(const FuseScalesRmiBackward<S>& problem, void* workspace, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
