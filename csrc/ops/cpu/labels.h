// Labels a row at a time, and how many of them are wrong.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/resize.h"
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
  const int64_t classes = row.classes, ignore_index = row.ignore_index;
  const int64_t stride = row.labels.column, n = row.columns.size();
  visit_labels(row.labels, row.b, row.y, row.columns.lo, [&](const auto* from) {
    bool regular = true;
    // One comparison without a branch: a negative label is a large number without a sign.
    const auto take = [&](int64_t i, int64_t label) {
      const bool is_class = (static_cast<uint64_t>(label) < static_cast<uint64_t>(classes)) & (label != ignore_index);
      regular &= is_class | (label == ignore_index);
      to[i] = static_cast<T>(is_class ? static_cast<int32_t>(label) : -1);
    };
    if (stride == 1) {
      for (int64_t i = 0; i < n; ++i) take(i, from[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) take(i, from[i * stride]);
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
