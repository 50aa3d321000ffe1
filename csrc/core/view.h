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

// Calls body(L()), where L is the C++ type of the labels. No other code tells these types apart.
template <typename Body>
HMSA_HOST_DEVICE auto visit_label_type(LabelType type, const Body& body) {
  switch (type) {
    case LabelType::kUint8:
      return body(uint8_t());
    case LabelType::kInt16:
      return body(int16_t());
    case LabelType::kInt32:
      return body(int32_t());
    default:
      return body(int64_t());
  }
}

// Labels [B, H, W] of any of these types at any strides, read as they are.
struct LabelView {
  const void* data;  // [B, H, W]
  LabelType type;
  int64_t batch;
  int64_t row;
  int64_t column;

  HMSA_HOST_DEVICE int64_t at(int64_t b, int64_t y, int64_t x) const {
    const int64_t offset = b * batch + y * row + x * column;
    return visit_label_type(
        type, [&](auto label) { return static_cast<int64_t>(static_cast<const decltype(label)*>(data)[offset]); });
  }
};

// Calls body(pointer to the label at (b, y, x)); the pointer has the type of the labels.
template <typename Body>
void visit_labels(const LabelView& labels, int64_t b, int64_t y, int64_t x, const Body& body) {
  const int64_t offset = b * labels.batch + y * labels.row + x * labels.column;
  visit_label_type(labels.type, [&](auto label) { body(static_cast<const decltype(label)*>(labels.data) + offset); });
}

}  // namespace hmsa
