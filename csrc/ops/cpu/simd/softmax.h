// Row primitives that end a chain: they turn rows of fused logits into losses or predictions. One table of functions
// per instruction set, as in rows.h.
//
// `planes` are rows of n logits, one for each channel, `pitch` elements from one to the next. Every row here is followed
// by kRowSlack elements that may be read and, in rows that are written, overwritten.
#pragma once

#include <cstdint>

namespace hmsa {

// A row of one channel, n pixels.
template <typename T>
struct CrossEntropyGradientRow {
  const T* logit;        // [n]
  const T* log_sum_exp;  // [n]
  const T* label;        // [n] whole numbers
  const T* all_of;       // [n]
  const T* own;          // [n]
  const T* smooth;       // [n]; null: no label smoothing
  T channel;
  T weight;  // of the channel
};

template <typename T>
struct SoftmaxOps {
  // Over the channels: `largest` logit m, and log_rest = log sum_c exp(z_c - m), which is at least 0 and exact to a few
  // ulp however small it is. Where a logit is NaN or all are infinite log_rest is NaN.
  void (*log_sum)(T* largest, T* log_rest, const T* planes, int64_t pitch, int64_t channels, int64_t n);

  // The first channel of the largest logit, and its softmax probability. Where a logit is NaN the probability is NaN and
  // the label that of the first NaN, which counts as the largest.
  void (*argmax)(int32_t* label, T* confidence, const T* planes, int64_t pitch, int64_t channels, int64_t n);

  // The label that argmax() gives, without a probability. Row k of the planes belongs to channel names[k], ascending.
  void (*label)(int32_t* label, const T* planes, int64_t pitch, const int32_t* names, int64_t channels, int64_t n);

  // Takes the n elements of a row into `least` and `largest`. False where one of them is NaN.
  bool (*bound)(T* least, T* largest, const T* row, int64_t n);
  // Whether a - b > margin for all n elements. These rows need no slack.
  bool (*exceeds)(const T* a, const T* b, T margin, int64_t n);

  // to = sum_c weight[c] z_c; weight null: all one
  void (*weighted_sum)(T* to, const T* planes, int64_t pitch, const T* weight, int64_t channels, int64_t n);

  // grad = all_of * exp(logit - log_sum_exp) - (label == channel ? own : 0) - weight * smooth.  `grad` may be `logit`.
  // No logit is larger than the log-sum-exp by more than 88.
  void (*cross_entropy_gradient)(T* grad, const CrossEntropyGradientRow<T>& row, int64_t n);

  // to = (a[x] + b[n - 1 - x]) / 2: a row and its mirror image.  `to` may be `a`.
  void (*average_mirrored)(T* to, const T* a, const T* b, int64_t n);
};

// The table for the instruction set of row_ops().
template <typename T>
const SoftmaxOps<T>& softmax_ops();

}  // namespace hmsa
