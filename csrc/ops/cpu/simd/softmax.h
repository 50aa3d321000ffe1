// Row primitives that end a chain: they turn rows of fused logits into losses or predictions. One table of functions
// per instruction set, as in rows.h.
//
// `planes` are rows of n logits, one for each channel, `pitch` elements from one to the next. Every row here is followed
// by kRowSlack elements that may be read and, in rows that are written, overwritten.
#pragma once

#include <cstdint>

#include "ops/cpu/simd/rows.h"

namespace hmsa {

// A row of labels as they are in a tensor, `stride` elements apart.
template <typename L>
struct LabelElements {
  const L* from;
  int64_t stride;
  int64_t classes;
  int64_t ignore_index;
};

// The losses of a row of pixels, from what log_sum() and pick() found.
template <typename T>
struct CrossEntropyLossRow {
  const T* largest;   // [n]
  const T* log_rest;  // [n]
  const T* own;       // [n] logit of the label
  const T* label;     // [n] whole numbers, below 0 where the pixel is ignored
  T share;            // of the label, beside label smoothing
};

// A row of one channel, n pixels.
template <typename T>
struct CrossEntropyGradientRow {
  const T* logit;        // [n]
  const T* log_sum_exp;  // [n]
  const T* label;        // [n] whole numbers
  T grad;                // of each loss, where
  const T* all_of;       // [n], is null
  const T* own;          // [n]
  const T* smooth;       // [n]; null: no label smoothing
  T channel;
  T weight;  // of the channel
};

// The last step of a chain with a lower scale, forward and backward, of one channel: see cross_entropy_backward().
template <typename T>
struct CrossEntropyLowerRow {
  const T* attention;  // [n] of the lower scale, resized
  RowPair<T> product, before;
  const T* log_sum_exp;  // [n] infinite where the pixel is ignored
  const T* label;        // [n] whole numbers
  T channel;
  T grad;  // of each loss
};

template <typename T>
struct SoftmaxOps {
  // to[x] = the label, or -1 where it is ignored or no class. False where one of them is neither.
  bool (*load_labels_uint8)(T* to, LabelElements<uint8_t> labels, int64_t n);
  bool (*load_labels_int16)(T* to, LabelElements<int16_t> labels, int64_t n);
  bool (*load_labels_int32)(T* to, LabelElements<int32_t> labels, int64_t n);
  bool (*load_labels_int64)(T* to, LabelElements<int64_t> labels, int64_t n);

  // to[x] = planes[max(channel[x], 0)][x]
  void (*pick)(T* to, const T* planes, int64_t pitch, const T* channel, int64_t n);

  // log_sum_exp = largest + log_rest;  loss = share weight ((largest - own) + log_rest), and loss = weight = 0 where the
  // label is below 0. These rows need no slack.
  void (*cross_entropy_loss)(T* loss, T* log_sum_exp, T* weight, const CrossEntropyLossRow<T>& row, int64_t n);

  // The sum in double, in the same order whatever the instruction set: the row needs no slack.
  double (*sum)(const T* row, int64_t n);

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
  // all_of null: row.grad for all_of and for own, and no smoothing.  No logit is larger than the log-sum-exp by more than 88.
  void (*cross_entropy_gradient)(T* grad, const CrossEntropyGradientRow<T>& row, int64_t n);

  // blend_lower() of rows.h, the gradient of cross-entropy, and lower_backward() in one pass in registers:
  //
  //     z = product + (1 - attention) before      g = grad (exp(z - log_sum_exp) - [label = channel])
  //     sum += g before                           to = (1 - attention) g
  void (*cross_entropy_backward)(T* to, T* g, T* sum, const CrossEntropyLowerRow<T>& row, int64_t n);

  // to = (a[x] + b[n - 1 - x]) / 2: a row and its mirror image.  `to` may be `a`.
  void (*average_mirrored)(T* to, const T* a, const T* b, int64_t n);
};

// The table for the instruction set of row_ops().
template <typename T>
const SoftmaxOps<T>& softmax_ops();

}  // namespace hmsa
