// Parts of the backward pass that work point by point, without tiles; fuse_scales_backward.cu uses them.
#pragma once

#include "core/half.h"
#include "core/view.h"

namespace hmsa {
namespace cuda {

// to[b, y, x] = kept * sum_c g * P_before (lower scale i), or kept * sum_c g * (L - R P_before) (scale 1.0).
template <typename S>
void launch_channel_sums(const FuseScalesBackward<S>& problem, int i, arithmetic_t<S>* to /* [B, H, W] */,
                         void* stream);

// Both gradients of scale i, a block per element of the head: for heads too small to be tiled.
template <typename S>
void launch_element_gradients(const FuseScalesBackward<S>& problem, int i, void* stream);

}  // namespace cuda
}  // namespace hmsa
