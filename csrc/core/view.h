// Tensors as the kernels see them: a pointer and strides.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace hmsa {

// A batch of maps [B, C, h, w] at any strides.
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

// A batch of planes [B, h, w] at any strides, zero among them.
template <typename S>
struct PlaneView {
  S* data;
  int64_t batch;
  int64_t row;
  int64_t column;

  HMSA_HOST_DEVICE S* at(int64_t b, int64_t y, int64_t x) const { return data + b * batch + y * row + x * column; }
};

enum class LabelType : int32_t { kUint8, kInt16, kInt32, kInt64 };

// Labels [B, H, W] of any of these types at any strides, read as they are.
struct LabelView {
  const void* data;
  LabelType type;
  int64_t batch;
  int64_t row;
  int64_t column;

  HMSA_HOST_DEVICE int64_t at(int64_t b, int64_t y, int64_t x) const {
    const int64_t offset = b * batch + y * row + x * column;
    switch (type) {
      case LabelType::kUint8:
        return static_cast<const uint8_t*>(data)[offset];
      case LabelType::kInt16:
        return static_cast<const int16_t*>(data)[offset];
      case LabelType::kInt32:
        return static_cast<const int32_t*>(data)[offset];
      default:
        return static_cast<const int64_t*>(data)[offset];
    }
  }
};

}  // namespace hmsa
