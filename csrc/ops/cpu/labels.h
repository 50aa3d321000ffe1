// Labels a row at a time, and what is said of wrong ones.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/view.h"

namespace hmsa {
namespace cpu {

// Labels that are neither a class nor ignored.
struct WrongLabels {
  int64_t pixels = 0;
  int64_t least = 0;
  int64_t largest = 0;

  void add(const WrongLabels& other) {
    if (other.pixels == 0) return;
    least = pixels == 0 ? other.least : std::min(least, other.least);
    largest = pixels == 0 ? other.largest : std::max(largest, other.largest);
    pixels += other.pixels;
  }
};

// n labels of row y from column x on as T: the class, or -1 where it is ignored or wrong.
template <typename L, typename T>
void load_labels_of(T* to, const L* from, int64_t stride, int64_t classes, int64_t ignore_index, int64_t n,
                    WrongLabels& wrong) {
  bool regular = true;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t label = from[i * stride];
    const bool is_class = label >= 0 && label < classes && label != ignore_index;
    regular &= is_class || label == ignore_index;
    to[i] = is_class ? static_cast<T>(label) : T(-1);
  }
  for (int64_t i = 0; !regular && i < n; ++i) {
    const int64_t label = from[i * stride];
    if (label == ignore_index || (label >= 0 && label < classes)) continue;
    wrong.add(WrongLabels{1, label, label});
  }
}

template <typename T>
void load_labels(T* to, const LabelView& labels, int64_t b, int64_t y, int64_t x, int64_t classes, int64_t ignore_index,
                 int64_t n, WrongLabels& wrong) {
  const int64_t offset = b * labels.batch + y * labels.row + x * labels.column;
  const auto load = [&](auto* from) {
    load_labels_of(to, from + offset, labels.column, classes, ignore_index, n, wrong);
  };
  switch (labels.type) {
    case LabelType::kUint8:
      return load(static_cast<const uint8_t*>(labels.data));
    case LabelType::kInt16:
      return load(static_cast<const int16_t*>(labels.data));
    case LabelType::kInt32:
      return load(static_cast<const int32_t*>(labels.data));
    default:
      return load(static_cast<const int64_t*>(labels.data));
  }
}

}  // namespace cpu
}  // namespace hmsa
