// Maps of the output that the attention's gradients need, summed over the channels (fuse_scales_channel_sums.cu).
#pragma once

#include "core/half.h"
#include "core/problem.h"

namespace hmsa {
namespace cuda {

// maps[i], where not null, gets for every pixel
//     kept * sum_c g * P_before          of a scale below 1.0
//     kept * sum_c g * (L - R P_before)  of scale 1.0, when it is not the largest
// with P_before of scale i and kept the product of 1 - R A over the scales behind it.
template <typename T>
struct ChannelSums {
  T* maps[kMaxScales];  // [B, H, W] each
  int last;             // the last scale with a map
};

template <typename S>
void launch_channel_sums(const FuseScalesBackward<S>& problem, const ChannelSums<arithmetic_t<S>>& sums, void* stream);

}  // namespace cuda
}  // namespace hmsa
