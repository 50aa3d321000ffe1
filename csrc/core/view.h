// A batch of maps [B, C, h, w] at any strides, and what the fusion kernels are given.
#pragma once

#include <cstdint>

#include "core/chain.h"
#include "core/host_device.h"

namespace hmsa {

template <typename S>
struct MapView {
  S* data;        // [B, C, h, w]
  int64_t batch;  // strides, in elements
  int64_t channel;
  int64_t row;
  int64_t column;

  HMSA_HOST_DEVICE S* at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return data + b * batch + c * channel + y * row + x * column;
  }
};

template <typename S>
struct FuseScalesForward {
  Chain chain;
  int64_t batch;
  int64_t classes;
  MapView<const S> logits[kMaxScales];     // [B, C, h_i, w_i]
  MapView<const S> attention[kMaxScales];  // [B, 1 or C, h_i, w_i], from 1 on: scale 0 has none
  MapView<S> output;                       // [B, C, H, W]
};

template <typename S>
struct FuseScalesBackward {
  Chain chain;
  int64_t batch;
  int64_t classes;
  MapView<const S> logits[kMaxScales];
  MapView<const S> attention[kMaxScales];
  MapView<const S> grad_output;        // [B, C, H, W]
  MapView<S> grad_logits[kMaxScales];  // like logits; data is null where no gradient is wanted
  MapView<S> grad_attention[kMaxScales];
};

}  // namespace hmsa
