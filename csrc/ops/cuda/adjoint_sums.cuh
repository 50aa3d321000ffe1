// The adjoint of a resize, rows first, then columns, for several channels of a tile.
//
// A map is seen as planes of lines. With channels apart (NCHW) a plane is a channel and a line its columns; with
// channels together (channels_last) there is one plane, and a line runs over (column, channel), channels fastest: both
// ways neighbouring threads touch neighbouring memory. `Planes` says which.
//
//     sum_rows     a thread takes four elements of a line and walks down the rows of the source, carrying three sums:
//                  each element is loaded once, and finished sums go to shared memory
//     sum_columns  a thread gathers what reaches a column of the target from those rows
//
// Every sum is taken in ascending order of rows, then columns, however the work is divided.
#pragma once

#include "ops/cuda/axis_tables.cuh"

namespace hmsa {
namespace cuda {
namespace backward {

constexpr int kMaxPlanes = 8;    // channels apart at a time
constexpr int kMinTogether = 4;  // fewer channels together are taken one by one

struct Planes {
  int count;      // channels apart, or 1
  int32_t inner;  // channels together, or 1

  HMSA_HOST_DEVICE int channels() const { return count * inner; }
};

// Rows summed, in shared memory: [planes, rows of the target, columns of the source x inner].
template <typename T>
struct RowSums {
  T* data;
  int32_t rows;
  int32_t pitch;  // whole quads

  HMSA_DEVICE T* row(int plane, int32_t i) const { return data + (plane * rows + i) * pitch; }
};

// ---- sources of row sums: maps in global memory, or patches in shared memory -----------------------------------------
//
// Each says where the q-th four elements of a line are, and loads them from any row; strides are in elements.

// Columns of a channel, in aligned rows of whole quads.
template <typename V>
struct AlignedLines {
  static constexpr int kRows = 4;  // a thread's loads in flight
  const V* data;                   // first row, column and channel of the tile, here and below
  int64_t plane;
  int64_t row;

  struct Elements {
    int32_t column;
  };
  HMSA_DEVICE Elements elements(int32_t q, int32_t /*quads*/, int32_t /*length*/, int32_t /*inner*/) const {
    return {q * kQuad};
  }
  template <typename T>
  HMSA_DEVICE void load(T (&to)[kQuad], int p, int32_t y, const Elements& at) const {
    const Quad<V> quad = load_quad(data + p * plane + y * row + at.column);
    for (int j = 0; j < kQuad; ++j) to[j] = to_arithmetic(quad.element[j]);
  }
  template <typename T>
  static HMSA_DEVICE void multiply(T (&value)[kQuad], const T* factor, const Elements& at) {
    const Quad<T> quad = load_quad(factor + at.column);
    for (int j = 0; j < kQuad; ++j) value[j] *= quad.element[j];
  }
  template <typename T>
  static HMSA_DEVICE void store(T* to, const T (&value)[kQuad], const Elements& at, int32_t /*q*/, int32_t /*quads*/) {
    store_quad(to + at.column, value);
  }
};

// Columns of a channel at any strides. Neighbouring threads take neighbouring columns, a thread's own lie apart.
template <typename V>
struct ApartLines {
  static constexpr int kRows = 2;
  const V* data;
  int64_t plane;
  int64_t row;
  int64_t step;

  struct Elements {
    int32_t column[kQuad];
  };
  HMSA_DEVICE Elements elements(int32_t q, int32_t quads, int32_t length, int32_t /*inner*/) const {
    Elements at;
    for (int j = 0; j < kQuad; ++j) at.column[j] = smaller(q + j * quads, length - 1);
    return at;
  }
  template <typename T>
  HMSA_DEVICE void load(T (&to)[kQuad], int p, int32_t y, const Elements& at) const {
    const V* line = data + p * plane + y * row;
    for (int j = 0; j < kQuad; ++j) to[j] = to_arithmetic(line[at.column[j] * step]);
  }
  template <typename T>
  static HMSA_DEVICE void multiply(T (&value)[kQuad], const T* factor, const Elements& at) {
    for (int j = 0; j < kQuad; ++j) value[j] *= factor[at.column[j]];
  }
  template <typename T>
  static HMSA_DEVICE void store(T* to, const T (&value)[kQuad], const Elements&, int32_t q, int32_t quads) {
    for (int j = 0; j < kQuad; ++j) to[q + j * quads] = value[j];
  }
};

// Lines over (column, channel), at least four channels: four elements lie in at most two columns.
template <typename V>
struct TogetherLines {
  static constexpr int kRows = 2;
  const V* data;
  int64_t row;
  int32_t step;  // from column to column
  bool quads;    // every four elements are neighbours, and aligned

  struct Elements {
    int32_t offset;  // of the first
    int32_t column;
    int32_t left;   // elements of this column; the rest are of the next, `jump` further on
    int32_t valid;  // elements before the end of the line
    int32_t jump;
  };
  HMSA_DEVICE Elements elements(int32_t q, int32_t /*quads*/, int32_t length, int32_t inner) const {
    const int32_t column = q * kQuad / inner;
    const int32_t channel = q * kQuad - column * inner;
    return {column * step + channel, column, inner - channel, length - q * kQuad, step - inner};
  }
  template <typename T>
  HMSA_DEVICE void load(T (&to)[kQuad], int /*p*/, int32_t y, const Elements& at) const {
    const V* line = data + y * row + at.offset;
    if (quads) {
      const Quad<V> quad = load_quad(line);
      for (int j = 0; j < kQuad; ++j) to[j] = to_arithmetic(quad.element[j]);
    } else {
      for (int j = 0; j < kQuad; ++j) {
        to[j] = j < at.valid ? to_arithmetic(line[j < at.left ? j : j + at.jump]) : T(0);
      }
    }
  }
  template <typename T>
  static HMSA_DEVICE void multiply(T (&value)[kQuad], const T* factor, const Elements& at) {
    const T first = factor[at.column];
    const T second = at.left < smaller(kQuad, at.valid) ? factor[at.column + 1] : first;
    for (int j = 0; j < kQuad; ++j) value[j] *= j < at.left ? first : second;
  }
  template <typename T>
  static HMSA_DEVICE void store(T* to, const T (&value)[kQuad], const Elements&, int32_t q, int32_t /*quads*/) {
    store_quad(to + q * kQuad, value);
  }
};

// A patch in shared memory. With channels apart [channels, rows, columns], rows of whole quads; with channels together
// [rows, columns, channels], an odd number apart so that threads on different columns meet no bank twice.
template <typename T>
struct Patch {
  T* data;
  int32_t plane;
  int32_t row;
  int32_t step;  // from column to column

  static HMSA_HOST_DEVICE int32_t step_of(int32_t inner) { return inner | 1; }
  static HMSA_HOST_DEVICE int32_t row_of(int32_t columns, int32_t inner) {
    return inner == 1 ? round_up(columns, kQuad) : columns * step_of(inner);
  }

  HMSA_DEVICE Patch(T* memory, int32_t rows, int32_t columns, int32_t inner)
      : data(memory), plane(rows * row_of(columns, inner)), row(row_of(columns, inner)), step(step_of(inner)) {}

  HMSA_DEVICE T& at(int32_t p, int32_t y, int32_t x, int32_t c) const {
    return data[p * plane + y * row + x * step + c];
  }
  HMSA_DEVICE AlignedLines<T> aligned_lines() const { return {data, plane, row}; }
  HMSA_DEVICE TogetherLines<T> together_lines() const { return {data, row, step, false}; }
};

// A factor on a tile for every channel: [rows, columns], rows of whole quads; or none.
template <typename T>
struct Factor {
  const T* data;
  int32_t row;
};

// ---- rows -----------------------------------------------------------------------------------------------------------

// The sums that a thread carries down the rows, for target rows `current` to `current + 2`.
template <typename T>
struct RunningSums {
  T sum[3][kQuad];
  int32_t current;

  HMSA_DEVICE explicit RunningSums(int32_t row) : current(row) {
    for (int k = 0; k < 3; ++k) {
      for (int j = 0; j < kQuad; ++j) sum[k][j] = T(0);
    }
  }
  HMSA_DEVICE void step() {
    for (int j = 0; j < kQuad; ++j) {
      sum[0][j] = sum[1][j];
      sum[1][j] = sum[2][j];
      sum[2][j] = T(0);
    }
    ++current;
  }
  // Branches on weights are uniform: they are the row's. A weight of zero must not turn inf into NaN.
  HMSA_DEVICE void add(const T (&weight)[3], const T (&value)[kQuad]) {
    for (int j = 0; j < kQuad; ++j) sum[0][j] += weight[0] * value[j];
    if (weight[1] != T(0)) {
      for (int j = 0; j < kQuad; ++j) sum[1][j] += weight[1] * value[j];
    }
    if (weight[2] != T(0)) {
      for (int j = 0; j < kQuad; ++j) sum[2][j] += weight[2] * value[j];
    }
  }
};

// Rows of `from`, times the factor, summed to the rows of the table's inputs. `columns` is the width of the source's
// tile. Ends without a barrier.
template <typename T, typename From>
HMSA_DEVICE_PHASE RowSums<T> sum_rows(const From& from, const Factor<T>& factor, const AxisTable<T>& table,
                                      int32_t columns, Planes planes, T* memory) {
  constexpr int kRows = From::kRows;
  const int32_t targets = table.inputs.size();
  const int32_t length = columns * planes.inner;
  const int32_t quads = divide_up(length, kQuad);
  const RowSums<T> to{memory, targets, quads * kQuad};

  // Where there are fewer quads than threads, several threads share a column and take some of the target rows each.
  // Source rows between two of them are loaded twice, so each takes two at least.
  const int32_t busy = larger(1, planes.count * quads);
  const int32_t segments = larger(1, smaller(kThreads / busy, targets / 2));
  const int32_t share = divide_up(targets, segments);

  for (int32_t item = thread(); item < planes.count * segments * quads; item += kThreads) {
    const int32_t q = item % quads;
    const int plane = item / quads / segments;
    const int32_t begin = item / quads % segments * share;
    const int32_t end = smaller(targets, begin + share);
    if (begin >= end) continue;

    const auto at = from.elements(q, quads, length, planes.inner);
    RunningSums<T> sums(begin - 2);
    const auto finish_until = [&](int32_t row) {
      for (; sums.current < row; sums.step()) {
        // Rows before `begin` belong to the thread above.
        if (sums.current >= begin) From::store(to.row(plane, sums.current), sums.sum[0], at, q, quads);
      }
    };

    const int32_t stop = table.reaches[end - 1].at[3];
    for (int32_t y = table.reaches[begin].at[0]; y < stop; y += kRows) {
      T value[kRows][kQuad];
      HMSA_UNROLL
      for (int r = 0; r < kRows; ++r) from.load(value[r], plane, smaller(y + r, stop - 1), at);
      HMSA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (y + r >= stop) break;
        const Tap<T> tap = table.taps[y + r];
        if (factor.data != nullptr) From::multiply(value[r], factor.data + (y + r) * factor.row, at);
        finish_until(tap.first - table.inputs.lo);
        sums.add(tap.weight, value[r]);
      }
    }
    finish_until(end);
  }
  return to;
}

// ---- columns --------------------------------------------------------------------------------------------------------

// Calls use(plane, row, column, channel of the plane, value) for every element of the target; rows and columns count
// from the tile's first. Needs the sums of the rows; ends without a barrier. A thread takes kPlanes planes at a time: they
// share the weights.
template <int kPlanes, typename T, typename Use>
HMSA_DEVICE_PHASE void sum_columns(const RowSums<T>& from, const AxisTable<T>& table, Planes planes, const Use& use) {
  const int32_t length = table.inputs.size() * planes.inner;
  const int32_t plane_step = from.rows * from.pitch;
  const int32_t groups = divide_up(planes.count, kPlanes);
  for (int32_t item = warp(); item < from.rows * groups; item += kWarps) {
    const int32_t first = item / from.rows * kPlanes;
    const int32_t i = item - item / from.rows * from.rows;
    for (int32_t e = lane(); e < length; e += kLanes) {
      const int32_t x = planes.inner == 1 ? e : e / planes.inner;
      const int32_t c = e - x * planes.inner;
      const T* line = from.row(first, i) + c;
      const Reach reach = table.reaches[x];
      T sum[kPlanes] = {};
      for (int32_t o = reach.at[0]; o < reach.at[3]; ++o) {
        const T weight = table.taps[o].weight[(o < reach.at[1] ? 1 : 0) + (o < reach.at[2] ? 1 : 0)];
        if (weight == T(0)) continue;
        HMSA_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          if (first + p < planes.count) sum[p] += weight * line[p * plane_step + o * planes.inner];
        }
      }
      HMSA_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        if (first + p < planes.count) use(first + p, i, x, c, sum[p]);
      }
    }
  }
}

}  // namespace backward
}  // namespace cuda
}  // namespace hmsa
