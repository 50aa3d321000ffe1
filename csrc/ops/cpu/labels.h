// Labels a row at a time, and how many of them are wrong.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/resize.h"
#include "core/view.h"
#include "ops/cpu/simd/softmax.h"

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

// Some columns of row y of image b.
struct LabelRow {
  const LabelView& labels;  // [B, H, W]
  int64_t b;
  int64_t y;
  Range columns;
  int64_t classes;
  int64_t ignore_index;
};

// Writes the labels of a row as T: the class, or -1 where the label is ignored or wrong. Counts the wrong ones.
template <typename T>
void load_labels(T* to, const LabelRow& row, WrongLabels& wrong) {
  const SoftmaxOps<T>& ops = softmax_ops<T>();
  const int64_t classes = row.classes, ignore_index = row.ignore_index;
  const int64_t stride = row.labels.column, n = row.columns.size();
  visit_labels(row.labels, row.b, row.y, row.columns.lo, [&](const auto* from) {
    using L = std::remove_cv_t<std::remove_pointer_t<decltype(from)>>;
    const LabelElements<L> labels{from, stride, classes, ignore_index};
    bool regular = true;
    if constexpr (std::is_same_v<L, uint8_t>) {
      regular = ops.load_labels_uint8(to, labels, n);
    } else if constexpr (std::is_same_v<L, int16_t>) {
      regular = ops.load_labels_int16(to, labels, n);
    } else if constexpr (std::is_same_v<L, int32_t>) {
      regular = ops.load_labels_int32(to, labels, n);
    } else {
      regular = ops.load_labels_int64(to, labels, n);
    }
    for (int64_t i = 0; !regular && i < n; ++i) {
      const int64_t label = from[i * stride];
      if (label == ignore_index || (label >= 0 && label < classes)) continue;
      wrong.add(WrongLabels{1, label, label});
    }
  });
}

}  // namespace cpu
}  // namespace hmsa
