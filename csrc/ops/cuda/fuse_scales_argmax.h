// CUDA kernel of fuse_scales_argmax: launched over plain device pointers; nothing here knows torch.
#pragma once

#include "core/half.h"
#include "core/problem.h"
#include "ops/cuda/stream_handle.h"

namespace hmsa {
namespace cuda {

template <typename S>
void launch_fuse_scales_argmax(const FuseScalesArgmax<S>& problem, StreamHandle stream);

}  // namespace cuda
}  // namespace hmsa
