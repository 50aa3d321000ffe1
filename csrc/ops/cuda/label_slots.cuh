// Labels of the pixels of a tile, as the kernels of the cross-entropy keep them.
#pragma once

#include "core/problem.h"
#include "ops/cuda/launch.h"

namespace hmsa {
namespace cuda {

// In place of a class.
constexpr int32_t kIgnoredLabel = -1;
constexpr int32_t kWrongLabel = -2;

template <typename T>
HMSA_DEVICE int32_t label_at(const CrossEntropyTarget<T>& target, int64_t classes, int64_t b, int32_t y, int32_t x) {
  const int64_t label = target.labels.at(b, y, x);
  if (label == target.ignore_index) return kIgnoredLabel;
  return label >= 0 && label < classes ? static_cast<int32_t>(label) : kWrongLabel;
}

template <typename T>
HMSA_DEVICE T weight_of(const CrossEntropyTarget<T>& target, int32_t c) {
  return target.weight != nullptr ? target.weight[c] : T(1);
}

}  // namespace cuda
}  // namespace hmsa
