// Row primitives of the CPU kernels: one table of functions per instruction set, chosen once at run time.
//
// A kernel is a schedule of these over short rows that live in the caches; all its time is spent here. T is the type
// of the arithmetic: float, or double for float64 tensors. rows.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/half.h"
#include "core/resize.h"

namespace hmsa {

// Elements behind a scratch row that may be read, whatever their values: two vectors of the widest instruction set.
constexpr int64_t kRowSlack = 31;

// Reads n elements, `stride` elements apart, as T; writes them likewise.
template <typename S, typename T>
using LoadRow = void (*)(T* to, const S* from, int64_t stride, int64_t n);
template <typename S, typename T>
using StoreRow = void (*)(S* to, int64_t stride, const T* from, int64_t n);

// A row that is interpolated between two: (1 - weight) a + weight b.
template <typename T>
struct RowPair {
  const T* a;
  const T* b;
  T weight;
};

// How outputs read a row: to[x] = sum_k weight[k][x] from[index[k][x]], index and weight [taps][pitch], index ascending
// in k; and in x for the first and the last of the taps, not always for those between. From steady.lo to steady.hi the
// weights repeat every kPeriod outputs, and the indices plus `step`: so it is for most of a row wherever the ratio of two
// sizes is 2, 4 or the like.
template <typename T>
struct TapTable {
  static constexpr int32_t kPeriod = 8;

  int taps;
  const int32_t* index;
  const T* weight;
  int64_t pitch;
  Range steady;
  int32_t step;
};

// Sums of different lengths: to[i] = sum_k weight[start[i] + k] from[origin[i] + k],  k < start[i + 1] - start[i]. From
// steady.lo to steady.hi all have the same weights, and origin grows by `step`.
template <typename T>
struct SumTable {
  const int32_t* origin;
  const int32_t* start;
  const T* weight;
  Range steady;
  int32_t step;
};

template <typename T>
struct RowOps {
  const char* name;

  // ---- resizes ------------------------------------------------------------------------------------------------------

  // to[x] = sum_k weight[k][x] from[index[k][x] - shift]                                      (columns, either direction)
  // `from` is followed by kRowSlack elements that may be read.
  void (*resample)(T* to, const T* from, int32_t shift, const TapTable<T>& table, int64_t n);
  // to = the sums of `from`, whose first element counts as number `shift`                              (long adjoints)
  void (*contract)(T* to, const T* from, int32_t shift, const SumTable<T>& table, int64_t n);
  // to = sum_k weights[k] rows[k],  2 <= count <= 4                                                             (rows)
  void (*sum_rows)(T* to, const T* const* rows, const T* weights, int count, int64_t n);
  // to[j] += weights[j][0] rows[0], then += weights[j][1] rows[1] and so on: 1 or 2 targets, 1 to 4 rows   (its adjoint)
  // `fresh`: the last target counts as zeros, whatever it holds.
  void (*spread)(T* const* to, int targets, bool fresh, const T* const* rows, const T (*weights)[4], int count,
                 int64_t n);

  // ---- products and sums --------------------------------------------------------------------------------------------

  // to = a * b;   to -= a;   to = (1 - a) * b.  `to` may be `b`.
  void (*multiply)(T* to, const T* a, const T* b, int64_t n);
  void (*subtract)(T* to, const T* a, int64_t n);
  void (*multiply_complement)(T* to, const T* a, const T* b, int64_t n);

  // ---- steps of the chain, forward: `to` may be before.a ------------------------------------------------------------

  // to = pair
  void (*lerp)(T* to, RowPair<T> pair, int64_t n);
  // to = pair * a
  void (*lerp_multiply)(T* to, RowPair<T> pair, const T* a, int64_t n);
  // to = attention * logit + (1 - attention) * before
  void (*blend_upper)(T* to, const T* attention, RowPair<T> logit, RowPair<T> before, int64_t n);
  // to = product + (1 - attention) * before
  void (*blend_lower)(T* to, const T* attention, RowPair<T> product, RowPair<T> before, int64_t n);

  // blend_lower that writes past the caches, for results larger than the caches: the processor need not read the memory
  // first. Other threads see the result after end_streams(). All rows but `to` are followed by kRowSlack elements.
  void (*blend_last)(T* to, const T* attention, RowPair<T> product, RowPair<T> before, int64_t n);
  void (*end_streams)();

  // ---- and backward: `to` may be grad -------------------------------------------------------------------------------

  // sum += grad * before;  to = (1 - attention) * grad
  void (*lower_backward)(T* to, T* sum, const T* grad, const T* attention, RowPair<T> before, int64_t n);
  // sum += grad * (logit - before);  product = attention * grad;  to = (1 - attention) * grad
  void (*upper_backward)(T* to, T* product, T* sum, const T* grad, const T* attention, RowPair<T> logit,
                         RowPair<T> before, int64_t n);
  // sum += pair * grad
  void (*lerp_multiply_add)(T* sum, RowPair<T> pair, const T* grad, int64_t n);

  // ---- memory -------------------------------------------------------------------------------------------------------

  LoadRow<T, T> load;
  StoreRow<T, T> store;
  LoadRow<Half, T> load_half;
  StoreRow<Half, T> store_half;
  LoadRow<BFloat16, T> load_bfloat16;
  StoreRow<BFloat16, T> store_bfloat16;
  // Between n pixels with their channels side by side, `stride` elements from one pixel to the next, and one row per
  // channel, `pitch` elements apart.
  void (*split_pixels)(T* rows, int64_t pitch, const T* pixels, int64_t stride, int64_t channels, int64_t n);
  void (*join_pixels)(T* pixels, int64_t stride, const T* rows, int64_t pitch, int64_t channels, int64_t n);
};

// The table for the instruction set of ops/cpu/instruction_set.h.
template <typename T>
const RowOps<T>& row_ops();

// The primitives that touch a tensor's memory, by its storage type S.
template <typename S, typename T>
struct MemoryOps {
  LoadRow<S, T> load;
  StoreRow<S, T> store;
};

template <typename S, typename T>
MemoryOps<S, T> memory_ops(const RowOps<T>& ops) {
  if constexpr (std::is_same_v<S, T>) {
    return {ops.load, ops.store};
  } else if constexpr (std::is_same_v<S, Half>) {
    return {ops.load_half, ops.store_half};
  } else {
    return {ops.load_bfloat16, ops.store_bfloat16};
  }
}

}  // namespace hmsa
