// fuse_scales on the GPU, forward: a bilinear resize in two halves.
//
// Along columns: a thread stays at one position and goes down the rows of the source, its taps in registers; each row
// that a tile needs is stretched once. Along rows: a thread holds a few neighbouring positions of the two stretched
// rows that it lies between and goes down a run of output rows, so that most of these cost no memory access.
#pragma once

#include <type_traits>

#include "core/blend.h"
#include "core/half.h"
#include "ops/cuda/forward_layout.cuh"

namespace hmsa {
namespace cuda {
namespace forward {

template <typename V>
HMSA_DEVICE V hidden(V value) {
#if defined(__CUDACC__)
  if constexpr (sizeof(V) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(reinterpret_cast<int&>(value)));
  }
#endif
  return value;
}

// Neighbouring elements that are read and written as one: 16 bytes of float, 8 of a half.
template <typename E, int kCount>
struct alignas(sizeof(E) * kCount <= 16 ? sizeof(E) * kCount : 16) Pack {
  E of[kCount];
};

// An address in shared memory, some bytes on: pitches are kept in bytes, which saves a multiplication by the size.
template <typename E>
HMSA_DEVICE E* below(E* at, int32_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<E>, const unsigned char, unsigned char>;
  return reinterpret_cast<E*>(reinterpret_cast<Byte*>(at) + bytes);
}

template <int kCount, typename E>
HMSA_DEVICE Pack<E, kCount> load(const E* from) {
  return *reinterpret_cast<const Pack<E, kCount>*>(from);
}

HMSA_DEVICE void store(float* to, const Pack<float, 4>& pack) {
  *reinterpret_cast<float4*>(to) = make_float4(pack.of[0], pack.of[1], pack.of[2], pack.of[3]);
}

template <typename S, typename T, int kCount>
HMSA_DEVICE void store(S* to, const Pack<T, kCount>& pack) {
  Pack<S, kCount> stored;
  HMSA_UNROLL
  for (int j = 0; j < kCount; ++j) from_arithmetic(&stored.of[j], pack.of[j]);
  *reinterpret_cast<Pack<S, kCount>*>(to) = stored;
}

// The two rows that an output row lies between, counted from the first that the block has, and their weights: one
// 16-byte read in float. `first` is kKeep where they are those of the row before, which the thread still holds.
template <typename T>
struct alignas(16) RowStep {
  int32_t first;
  int32_t second;
  T first_weight;
  T second_weight;

  static constexpr int32_t kKeep = -1;
};

// Where a resize copies, both taps are the same element and half of it is added to itself: exact for all numbers but
// the subnormal ones, for infinities and NaN, and no code of its own.
template <typename T>
HMSA_DEVICE Taps<T> taps_of(const AxisMap& map, int32_t o) {
  Taps<T> taps = map.taps<T>(o);
  if (map.copies) taps.weight = T(0.5);
  return taps;
}

// The tables are made by calls: long code, run once by a block, the same for all storage types.

template <typename T>
HMSA_DEVICE_CALL void fill_column_taps(Taps<T>* table, const AxisMap map, Range range, int32_t first_column) {
  for (int32_t k = thread_index(); k < range.size(); k += kBlockThreads) {
    const Taps<T> taps = taps_of<T>(map, range.lo + k);
    table[k] = Taps<T>{taps.first - first_column, taps.second - first_column, taps.weight};
  }
}

// Rows below the tile, where its last run ends outside, repeat its last row.
template <typename T>
HMSA_DEVICE_CALL void fill_row_steps(RowStep<T>* table, const AxisMap map, Range range, int32_t first_row) {
  for (int32_t k = thread_index(); k < rounded_up(range.size(), kRun); k += kBlockThreads) {
    const int32_t o = range.lo + k;
    const Taps<T> taps = taps_of<T>(map, min(o, range.hi - 1));
    RowStep<T> step{taps.first - first_row, taps.second - first_row, T(1) - taps.weight, taps.weight};
    if (k % kRun != 0 && map.taps<T>(min(o - 1, range.hi - 1)).first == taps.first) step.first = RowStep<T>::kKeep;
    table[k] = step;
  }
}

// `whole` is 1 for columns, kRun for rows.
template <typename T>
HMSA_DEVICE_CALL void fill_composed_taps(ComposedTaps<T>* table, const ComposedMap map, Range range, int32_t first,
                                         int32_t whole) {
  for (int32_t k = thread_index(); k < rounded_up(range.size(), whole); k += kBlockThreads) {
    ComposedTaps<T> taps = map.taps<T>(min(range.lo + k, range.hi - 1));
    for (int t = 0; t < taps.count; ++t) taps.index[t] -= first;
    table[k] = taps;
  }
}

// ---- along columns --------------------------------------------------------------------------------------------------

// What one position of a stretched row is made of.
template <int kTaps, typename E, typename T = arithmetic_t<E>>
struct ColumnSource {
  const E* from[kTaps];  // in the first row
  T weight[kTaps];
  int32_t count;  // of taps that exist

  HMSA_DEVICE T value() const {
    T sum = weight[0] * to_arithmetic(*from[0]);
    HMSA_UNROLL
    for (int k = 1; k < kTaps; ++k) {
      if (kTaps == 2 || k < count) sum += weight[k] * to_arithmetic(*from[k]);
    }
    return sum;
  }

  template <typename Stride>
  HMSA_DEVICE void advance(Stride row) {
    HMSA_UNROLL
    for (int k = 0; k < kTaps; ++k) from[k] += row;
  }
};

template <typename E, typename T, typename Stride>
HMSA_DEVICE ColumnSource<2, E> column_source(const E* from, Stride column, const Taps<T>& taps) {
  return {{from + taps.first * column, from + taps.second * column}, {T(1) - taps.weight, taps.weight}, 2};
}

template <typename E, typename T, typename Stride>
HMSA_DEVICE ColumnSource<4, E> column_source(const E* from, Stride column, const ComposedTaps<T>& taps) {
  ColumnSource<4, E> source;
  source.count = taps.count;
  HMSA_UNROLL
  for (int k = 0; k < 4; ++k) {
    source.from[k] = from + taps.index[k] * column;
    source.weight[k] = taps.weight[k];
  }
  return source;
}

// Row after row from global memory. Several are read before the first is written: their latencies overlap.
template <int kTaps, typename S, typename T>
HMSA_DEVICE void stretch_column(ColumnSource<kTaps, S> source, int64_t stride, int32_t rows, T* to, int32_t pitch) {
  constexpr int kAhead = 4;
  HMSA_ROLLED
  for (; rows >= kAhead; rows -= kAhead) {
    T values[kAhead];
    HMSA_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      values[k] = source.value();
      source.advance(stride);
    }
    HMSA_UNROLL
    for (int k = 0; k < kAhead; ++k, to = below(to, pitch)) *to = values[k];
  }
  HMSA_ROLLED
  for (; rows > 0; --rows, to = below(to, pitch)) {
    *to = source.value();
    source.advance(stride);
  }
}

// Four rows at once from two neighbouring columns of a transposed level; there is room for whole fours.
template <typename T>
HMSA_DEVICE void stretch_level_column(const T* first, const T* second, T weight, int32_t rows, T* to, int32_t pitch) {
  const T first_weight = T(1) - weight;
  HMSA_ROLLED
  for (; rows > 0; rows -= 4, first += 4, second += 4) {
    const Pack<T, 4> a = load<4>(first);
    const Pack<T, 4> b = load<4>(second);
    HMSA_UNROLL
    for (int k = 0; k < 4; ++k, to = below(to, pitch)) *to = first_weight * a.of[k] + weight * b.of[k];
  }
}

// ---- along rows -----------------------------------------------------------------------------------------------------

// Calls use(r, pack) for a run of output rows; `rows` points to the positions in the first stretched row.
template <int kCount, typename T, typename Use>
HMSA_DEVICE void interpolate_rows(const T* rows, int32_t pitch, const RowStep<T>* steps, const Use& use) {
  Pack<T, kCount> a{};
  Pack<T, kCount> b{};
  HMSA_UNROLL
  for (int r = 0; r < kRun; ++r) {
    const RowStep<T> step = steps[r];
    if (r == 0 || step.first != RowStep<T>::kKeep) {
      a = load<kCount>(below(rows, step.first * pitch));
      b = load<kCount>(below(rows, step.second * pitch));
    }
    Pack<T, kCount> value;
    HMSA_UNROLL
    for (int j = 0; j < kCount; ++j) value.of[j] = step.first_weight * a.of[j] + step.second_weight * b.of[j];
    use(r, value);
  }
}

template <int kCount, typename T, typename Use>
HMSA_DEVICE void interpolate_composed_rows(const T* rows, int32_t pitch, const ComposedTaps<T>* taps, const Use& use) {
  HMSA_UNROLL
  for (int r = 0; r < kRun; ++r) {
    Pack<T, kCount> value = load<kCount>(below(rows, taps[r].index[0] * pitch));
    HMSA_UNROLL
    for (int j = 0; j < kCount; ++j) value.of[j] *= taps[r].weight[0];
    HMSA_ROLLED
    for (int k = 1; k < taps[r].count; ++k) {
      const Pack<T, kCount> row = load<kCount>(below(rows, taps[r].index[k] * pitch));
      const T weight = taps[r].weight[k];
      HMSA_UNROLL
      for (int j = 0; j < kCount; ++j) value.of[j] += weight * row.of[j];
    }
    use(r, value);
  }
}

template <int kCount, typename T>
HMSA_DEVICE Pack<T, kCount> complement(Pack<T, kCount> values) {
  HMSA_UNROLL
  for (int j = 0; j < kCount; ++j) values.of[j] = T(1) - values.of[j];
  return values;
}

template <int kCount, typename T, typename Factor>
HMSA_DEVICE void multiply(Pack<T, kCount>* values, const Factor& factor) {
  HMSA_UNROLL
  for (int r = 0; r < kRun; ++r) {
    const Pack<T, kCount> row = factor(r);
    HMSA_UNROLL
    for (int j = 0; j < kCount; ++j) values[r].of[j] *= row.of[j];
  }
}

// The values of a run to consecutive rows of a map, those above `height` only ...
template <int kCount, typename T>
HMSA_DEVICE void store_rows(const Pack<T, kCount>* values, int32_t height, T* to, int32_t pitch) {
  HMSA_UNROLL
  for (int r = 0; r < kRun; ++r) {
    if (r < height) store(below(to, r * pitch), values[r]);
  }
}

// ... and to a transposed one, in fours.
template <int kCount, typename T>
HMSA_DEVICE void store_transposed(const Pack<T, kCount>* values, int32_t height, T* to, int32_t pitch) {
  HMSA_UNROLL
  for (int r = 0; r < kRun; r += 4) {
    if (r >= height) return;
    HMSA_UNROLL
    for (int j = 0; j < kCount; ++j) {
      store(below(to, j * pitch) + r,
            Pack<T, 4>{{values[r].of[j], values[r + 1].of[j], values[r + 2].of[j], values[r + 3].of[j]}});
    }
  }
}

}  // namespace forward
}  // namespace cuda
}  // namespace hmsa
