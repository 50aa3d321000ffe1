// Row primitives of the region mutual information loss: one table of functions per instruction set, as in rows.h.
//
// Every row of T here is followed by kRowSlack elements that may be read and, in rows that are written, overwritten.
// Labels are whole numbers: the class, or -1 at pixels that do not count, whatever their logit is.
#pragma once

#include <cstdint>

#include "core/fuse_scales_rmi.h"

namespace hmsa {

template <typename T>
struct RmiOps {
  // Sums over 1 to 4 rows, the rows of a window: of probabilities sigmoid(z), of labels that are `channel`, and of the
  // binary cross-entropy, which is *added* to `loss` (it has no slack). Where `probability` is null only the last is
  // made; null `loss`: only the others.
  void (*sum_window_rows)(T* probability, T* labelled, double* loss, const T* const* logits, const T* const* labels,
                          int rows, T channel, int64_t n);

  // to[k] = (from[4 k] + ... + from[4 k + 3]) / 16: nothing here has slack.
  void (*pool_columns)(double* to, const T* from, int64_t n);

  // g = pooled * p (1 - p) + bce * (p - y), and 0 at pixels that do not count. `grad` may be `logit`; null `pooled`: 0.
  void (*gradient)(T* grad, const T* logit, const T* label, const T* pooled, T bce, T channel, int64_t n);

  // ---- pooled rows, which have no slack -----------------------------------------------------------------------------

  // sum of n elements
  double (*sum)(const double* row, int64_t n);
  // to[i][k][d] = sum over x < n of a[i][x] b[k][x + d - 2]
  void (*products)(double (*to)[2][kRmiTaps], const double* const* a, const double* const* b, int64_t n);
  // to[x] = constant + sum over i < 10, d < 5 of weight[i][d] rows[i][x + d - 2]
  void (*correlate)(T* to, const double* const* rows, const double (*weight)[kRmiTaps], double constant, int64_t n);
};

// The table for the instruction set of row_ops().
template <typename T>
const RmiOps<T>& rmi_ops();

}  // namespace hmsa
