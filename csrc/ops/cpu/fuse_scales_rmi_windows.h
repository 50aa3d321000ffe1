// Pooled probabilities and labels of a tile, one class after the other, from the rows of its fused logits; the logits
// themselves exist for one window's rows at a time.
#pragma once

#include <algorithm>

#include "core/fuse_scales_rmi.h"
#include "ops/cpu/fused_rows.h"
#include "ops/cpu/labels.h"
#include "ops/cpu/simd/fuse_scales_rmi_rows.h"

namespace hmsa {
namespace cpu {

template <typename S, typename T>
class RmiWindows {
 public:
  RmiWindows(const ChainInputs<S>& inputs, const ChainAxes<T>& axes, const LabelView& labels, int64_t ignore_index)
      : inputs_(inputs), label_view_(labels), ignore_index_(ignore_index), fused_(inputs, axes), ops_(rmi_ops<T>()) {}

  const RmiOps<T>& ops() const { return ops_; }

  // Groups of pixels (core/fuse_scales_rmi.h) of image b that are wanted.
  void begin(Scratch<T>& scratch, int64_t b, const Tile& groups) {
    batch_ = b;
    groups_ = groups;
    const Extent size = inputs_.chain.size;
    pixels_ = Tile{rmi_pixels(groups.rows, size.height), rmi_pixels(groups.columns, size.width)};
    const int64_t width = pixels_.columns.size();
    fused_.begin(scratch, pixels_);
    if (!inputs_.chain.class_wise) fused_.read_attention(scratch, b, 0);
    fused_.stream.allocate(scratch, state_);
    label_pitch_ = scratch.pitch(width + kRowSlack);
    labels_ = scratch.take(label_pitch_ * pixels_.rows.size());
    for (T*& row : logits_) row = scratch.take(width + kRowSlack);
    const int64_t whole = groups.columns.size() * kRmiPool + kRowSlack;
    sums_ = scratch.take(whole);
    labelled_ = scratch.take(whole);
    WrongLabels wrong;
    for (int32_t y = pixels_.rows.lo; y < pixels_.rows.hi; ++y) {
      load_labels(labels_row(y), {label_view_, b, y, pixels_.columns, inputs_.classes, ignore_index_}, wrong);
    }
  }

  const Tile& pixels() const { return pixels_; }

  // The class, or -1, of the pixels of row y.
  T* labels_row(int32_t y) const { return labels_ + (y - pixels_.rows.lo) * label_pitch_; }

  // make_row() is then called for rows in ascending order.
  void begin_class(Scratch<T>& scratch, int64_t c) {
    channel_ = c;
    if (inputs_.chain.class_wise) fused_.read_attention(scratch, batch_, c);
    fused_.stream.start(state_, batch_, c);
  }

  // Group row k: writes pooled probabilities and labels for the columns of the tile, and adds the loss of its pixels to
  // `loss`, one number for each column of pixels. Either may be null: then it is left out.
  void make_row(double* probability, double* labelled, double* loss, int32_t k) {
    const Range rows = rmi_pixels(Range{k, k + 1}, inputs_.chain.size.height);
    const T* logits[kRmiPool];
    const T* labels[kRmiPool];
    for (int32_t y = rows.lo; y < rows.hi; ++y) {
      fused_.make(logits_[y - rows.lo], state_, y);
      logits[y - rows.lo] = logits_[y - rows.lo];
      labels[y - rows.lo] = labels_row(y);
    }
    // Columns of the padding hold zeros.
    const int64_t start = pixels_.columns.lo - (groups_.columns.lo * kRmiPool - kRmiPad);
    const int64_t width = pixels_.columns.size();
    ops_.sum_window_rows(probability == nullptr ? nullptr : sums_ + start, labelled_ + start, loss, logits, labels,
                         rows.size(), static_cast<T>(channel_), width);
    if (probability == nullptr) return;
    const int64_t windows = groups_.columns.size();
    for (T* row : {sums_, labelled_}) {
      std::fill(row, row + start, T(0));
      std::fill(row + start + width, row + windows * kRmiPool, T(0));
    }
    ops_.pool_columns(probability, sums_, windows);
    ops_.pool_columns(labelled, labelled_, windows);
    for (int32_t l = groups_.columns.lo; l < groups_.columns.hi; ++l) {
      const int64_t inside = rmi_pixels(Range{l, l + 1}, inputs_.chain.size.width).size() * rows.size();
      probability[l - groups_.columns.lo] += static_cast<double>(inside) * (kRmiFloor / kRmiWindow);
    }
  }

 private:
  const ChainInputs<S>& inputs_;
  const LabelView& label_view_;
  int64_t ignore_index_;
  FusedRow<S, T> fused_;
  const RmiOps<T>& ops_;
  StreamState<T> state_;
  int64_t batch_ = 0;
  int64_t channel_ = 0;
  Tile groups_{{0, 0}, {0, 0}};
  Tile pixels_{{0, 0}, {0, 0}};
  int64_t label_pitch_ = 0;
  T* labels_ = nullptr;
  T* logits_[kRmiPool] = {};
  T* sums_ = nullptr;      // over a window's rows
  T* labelled_ = nullptr;  // likewise
};

}  // namespace cpu
}  // namespace hmsa
