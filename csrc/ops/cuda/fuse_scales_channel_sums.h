// Maps of the output that the attention's gradients need, summed over the channels (fuse_scales_channel_sums.cu).
#pragma once

#include "core/half.h"
#include "core/problem.h"

namespace hmsa {
namespace cuda {

// maps[i], where not null, gets for every pixel
//     kept * sum_c g * P_before          of a scale below 1.0
//     kept * sum_c g * (L - R P_before)  of scale 1.0, when it is not the largest
// with P_before of scale i and kept the product of 1 - R A over the scales behind it. Only a part of them may exist.
template <typename T>
struct ChannelSums {
  T* maps[kMaxScales];  // [B, H, W] each: where element (0, 0, 0) lies, or would
  int64_t batch;        // strides of all of them
  int64_t row;
  Tile output;  // the part, of every image; columns begin at a whole quad
  int last;     // the last scale with a map

  HMSA_HOST_DEVICE T* at(int i, int64_t b, int64_t y, int64_t x) const { return maps[i] + b * batch + y * row + x; }
};

template <typename S, typename G>
void launch_channel_sums(const FuseScalesBackward<S, G>& problem, const ChannelSums<arithmetic_t<S>>& sums,
                         void* stream);

}  // namespace cuda
}  // namespace hmsa
