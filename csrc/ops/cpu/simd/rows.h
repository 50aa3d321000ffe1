// Row primitives of the CPU kernels: one table of functions per instruction set, chosen once at run time.
//
// A kernel is a schedule of these over short rows that live in the caches; all its time is spent here. T is the type
// of the arithmetic: float, or double for float64 tensors. rows.cpp is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/half.h"

namespace hmsa {

constexpr int64_t kRowSlack = 15;

// Reads n elements, `stride` elements apart, as T; writes them likewise.
template <typename S, typename T>
using LoadRow = void (*)(T* to, const S* from, int64_t stride, int64_t n);
template <typename S, typename T>
using StoreRow = void (*)(S* to, int64_t stride, const T* from, int64_t n);

template <typename T>
struct RowOps {
  const char* name;

  // to[x] = (1 - weight[x]) from[first[x] - shift] + weight[x] from[second[x] - shift]     (horizontal interpolation)
  // `from` must be followed by kRowSlack elements that may be read, whatever they hold: scratch rows are.
  void (*expand)(T* to, const T* from, int32_t shift, const int32_t* first, const int32_t* second, const T* weight,
                 int64_t n);
  // to = (1 - weight) a + weight b                                                          (vertical interpolation)
  void (*lerp)(T* to, const T* a, const T* b, T weight, int64_t n);
  // to = a * b
  void (*multiply)(T* to, const T* a, const T* b, int64_t n);
  // to = (1 - a) * to
  void (*multiply_complement)(T* to, const T* a, int64_t n);
  // to += a * b
  void (*multiply_add)(T* to, const T* a, const T* b, int64_t n);
  // to += a * (b - c)
  void (*multiply_difference_add)(T* to, const T* a, const T* b, const T* c, int64_t n);
  // to = sum_k weight[k] rows[k],  rows[k] = first + k * pitch                                     (adjoint of lerp)
  void (*gather)(T* to, const T* first, int64_t pitch, const T* weight, int32_t count, int64_t n);
  // to[i] = sum_k weight[start[i] + k] from[origin[i] - shift + k],  k < start[i + 1] - start[i]    (adjoint of expand)
  void (*contract)(T* to, const T* from, int32_t shift, const int32_t* origin, const int32_t* start, const T* weight,
                   int64_t n);
  // to = attention * logit + (1 - attention) * before, each of logit and before interpolated between two rows
  void (*blend_upper)(T* to, const T* attention, const T* logit0, const T* logit1, T logit_weight, const T* before0,
                      const T* before1, T before_weight, int64_t n);
  // to = product + (1 - attention) * before, with product interpolated between two rows
  void (*blend_lower)(T* to, const T* attention, const T* product0, const T* product1, T product_weight,
                      const T* before, int64_t n);

  LoadRow<T, T> load;
  StoreRow<T, T> store;
  LoadRow<Half, T> load_half;
  StoreRow<Half, T> store_half;
  LoadRow<BFloat16, T> load_bfloat16;
  StoreRow<BFloat16, T> store_bfloat16;
};

// The table for this processor, or the one that the environment variable HMSA_SIMD names (v2, v3, v4, generic).
template <typename T>
const RowOps<T>& row_ops();

// The load and store of a storage type.
template <typename T>
LoadRow<T, T> load_of(const RowOps<T>& ops, const T*) {
  return ops.load;
}
template <typename T>
LoadRow<Half, T> load_of(const RowOps<T>& ops, const Half*) {
  return ops.load_half;
}
template <typename T>
LoadRow<BFloat16, T> load_of(const RowOps<T>& ops, const BFloat16*) {
  return ops.load_bfloat16;
}
template <typename T>
StoreRow<T, T> store_of(const RowOps<T>& ops, const T*) {
  return ops.store;
}
template <typename T>
StoreRow<Half, T> store_of(const RowOps<T>& ops, const Half*) {
  return ops.store_half;
}
template <typename T>
StoreRow<BFloat16, T> store_of(const RowOps<T>& ops, const BFloat16*) {
  return ops.store_bfloat16;
}

}  // namespace hmsa
