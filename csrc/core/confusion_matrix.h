// The confusion matrix: the struct for its kernels, and the cell that a pixel adds to.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/view.h"

namespace hmsa {

// counts[t, p] gets the number of pixels of truth t and prediction p. Pixels whose truth is `ignore_index` are skipped,
// whatever was predicted there; those of any other truth or prediction outside [0, classes) are counted in `invalid`.
struct ConfusionMatrix {
  LabelView prediction;  // [B, H, W]
  LabelView target;      // [B, H, W]
  int64_t batch;
  int64_t height;
  int64_t width;
  int32_t classes;
  int64_t ignore_index;
  int64_t* counts;   // [K, K], rows are the truth; written, not added to
  int64_t* invalid;  // one number, likewise
};

// The element of `counts` that a pixel adds to, or one of these.
constexpr int64_t kSkippedPixel = -1;
constexpr int64_t kInvalidPixel = -2;

HMSA_HOST_DEVICE int64_t confusion_cell(int64_t target, int64_t prediction, int32_t classes, int64_t ignore_index) {
  if (target == ignore_index) return kSkippedPixel;
  const auto is_class = [&](int64_t label) { return label >= 0 && label < classes; };
  return is_class(target) && is_class(prediction) ? target * classes + prediction : kInvalidPixel;
}

}  // namespace hmsa
